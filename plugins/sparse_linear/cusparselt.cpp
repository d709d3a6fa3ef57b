#include "cusparselt.h"

#include "device.h"

namespace sparseflow::lt {
namespace {

constexpr int kOldest = 801;  // the search of 0.8.0 ends, on an H200 and for FP16, in an illegal instruction

Wanted wanted() {
  return {"cuSPARSELt", "SPARSEFLOW_CUSPARSELT", {"libcusparseLt.so.0"},
          "install nvidia-cusparselt-cu12 or -cu13, 0.8.1 or later", {"libnvrtc.so.13", "libnvrtc.so.12"}};
}

int version_of(Api const& api, Library const& library) {
  int numbers[3] = {};
  libraryPropertyType const parts[3] = {MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
  for (int i = 0; i < 3; ++i) {
    if (api.get_property(parts[i], &numbers[i]) != 0) {
      library.refuse("does not say its version");
    }
  }
  return numbers[0] * 10000 + numbers[1] * 100 + numbers[2];
}

struct Loaded {
  Api api{};
  int version = 0;
  bool compiles = false;
};

Loaded load() {
  Library const library(wanted());
  Loaded loaded;
  auto& api = loaded.api;
  library.find("cusparseLtInit", api.init);
  library.find("cusparseLtDestroy", api.destroy);
  library.find("cusparseLtGetProperty", api.get_property);
  library.find("cusparseLtGetErrorString", api.error_string);
  library.find("cusparseLtDenseDescriptorInit", api.dense);
  library.find("cusparseLtStructuredDescriptorInit", api.structured);
  library.find("cusparseLtMatDescriptorDestroy", api.matrix_destroy);
  library.find("cusparseLtMatmulDescriptorInit", api.matmul_init);
  library.find("cusparseLtMatmulDescSetAttribute", api.matmul_set);
  library.find("cusparseLtMatmulAlgSelectionInit", api.selection_init);
  library.find("cusparseLtMatmulAlgSelectionDestroy", api.selection_destroy);
  library.find("cusparseLtMatmulAlgSetAttribute", api.selection_set);
  library.find("cusparseLtMatmulAlgGetAttribute", api.selection_get);
  library.find("cusparseLtMatmulGetWorkspace", api.workspace);
  library.find("cusparseLtMatmulPlanInit", api.plan_init);
  library.find("cusparseLtMatmulPlanDestroy", api.plan_destroy);
  library.find("cusparseLtMatmul", api.matmul);
  library.find("cusparseLtSpMMACompressedSize2", api.compressed_size);
  library.find("cusparseLtSpMMACompress2", api.compress);
  loaded.version = version_of(api, library);
  loaded.compiles = library.is_helped();
  if (loaded.version < kOldest) {
    library.refuse("is " + in_words(loaded.version) + ", and " + in_words(kOldest) + " is the oldest that is taken");
  }
  return loaded;
}

// Loaded once; where that fails, tried anew by the next call.
Loaded const& library() {
  static Loaded const loaded = load();
  return loaded;
}

}  // namespace

std::string in_words(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
         std::to_string(version % 100);
}

Session::Session(int device) : api_(&library().api), device_(device), version_(library().version), handle_{} {
  check(api_->init(&handle_), "cusparseLtInit");
}

Session::~Session() { api_->destroy(&handle_); }

void Session::check(Status status, char const* what) const {
  if (status != 0) {
    auto const* const why = library().compiles ? "" : "; it compiles FP16 kernels with NVRTC, which is missing: install "
                                                      "nvidia-cuda-nvrtc or, for CUDA 12, nvidia-cuda-nvrtc-cu12";
    throw LibraryError("cuSPARSELt: " + std::string(what) + " failed: " + api_->error_string(status) + why);
  }
}

std::shared_ptr<Session> session() {
  return cuda::one_for_each_gpu<Session>([](int device) { return std::make_shared<Session>(device); });
}

}  // namespace sparseflow::lt
