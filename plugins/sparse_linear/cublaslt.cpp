#include "cublaslt.h"

#include "device.h"

namespace sparseflow::blas {
namespace {

Wanted wanted() {
  return {"cuBLASLt", "SPARSEFLOW_CUBLASLT", {"libcublasLt.so.13", "libcublasLt.so.12"},
          "install nvidia-cublas (CUDA 13) or nvidia-cublas-cu12", {}};
}

Api load() {
  Library const library(wanted());
  Api api{};
  library.find("cublasLtCreate", api.create);
  library.find("cublasLtDestroy", api.destroy);
  library.find("cublasLtGetVersion", api.version);
  library.find("cublasLtGetStatusString", api.error_string);
  library.find("cublasLtMatmulDescCreate", api.matmul_create);
  library.find("cublasLtMatmulDescDestroy", api.matmul_destroy);
  library.find("cublasLtMatmulDescSetAttribute", api.matmul_set);
  library.find("cublasLtMatrixLayoutCreate", api.layout_create);
  library.find("cublasLtMatrixLayoutDestroy", api.layout_destroy);
  library.find("cublasLtMatmulPreferenceCreate", api.preference_create);
  library.find("cublasLtMatmulPreferenceDestroy", api.preference_destroy);
  library.find("cublasLtMatmulPreferenceSetAttribute", api.preference_set);
  library.find("cublasLtMatmulAlgoGetHeuristic", api.heuristic);
  library.find("cublasLtMatmulAlgoCheck", api.check);
  library.find("cublasLtMatmul", api.matmul);
  return api;
}

// Loaded once; where that fails, tried anew by the next call.
Api const& library() {
  static Api const loaded = load();
  return loaded;
}

}  // namespace

Session::Session() : api_(&library()), version_(static_cast<int>(api_->version())) {
  check(api_->create(&handle_), "cublasLtCreate");
}

Session::~Session() { api_->destroy(handle_); }

void Session::check(Status status, char const* what) const {
  if (status != 0) {
    throw LibraryError("cuBLASLt: " + std::string(what) + " failed: " + api_->error_string(status));
  }
}

std::shared_ptr<Session> session() {
  return cuda::one_for_each_gpu<Session>([](int) { return std::make_shared<Session>(); });
}

}  // namespace sparseflow::blas
