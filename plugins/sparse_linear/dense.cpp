#include "dense.h"

#include <utility>

namespace sparseflow {
namespace {

class Layout {
 public:
  Layout(blas::Session const& session, Type type, int64_t rows, int64_t columns) : session_(session) {
    session.check(session.api().layout_create(&layout_, cuda_type(type), static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(columns), rows),
                  "cublasLtMatrixLayoutCreate");
  }
  ~Layout() { session_.api().layout_destroy(layout_); }
  Layout(Layout const&) = delete;
  Layout& operator=(Layout const&) = delete;

  blas::Layout get() const { return layout_; }

 private:
  blas::Session const& session_;
  blas::Layout layout_ = nullptr;
};

class Matmul {
 public:
  Matmul(blas::Session const& session, Shape const& shape) : session_(session) {
    session.check(session.api().matmul_create(&matmul_, blas::kFloat32, CUDA_R_32F), "cublasLtMatmulDescCreate");
    try {
      set(blas::kTransposeA, int32_t{blas::kTranspose});
      auto epilogue = uint32_t{blas::kPlain};
      if (shape.activation == Activation::kRelu) {
        epilogue = blas::kRelu;
      }
      if (shape.bias != nullptr) {
        epilogue = (epilogue & ~uint32_t{blas::kPlain}) | blas::kBias;
        set(blas::kBiasPointer, shape.bias);
        set(blas::kBiasType, int32_t{cuda_type(shape.type)});
      }
      set(blas::kEpilogue, epilogue);
    } catch (...) {
      session.api().matmul_destroy(matmul_);
      throw;
    }
  }
  ~Matmul() { session_.api().matmul_destroy(matmul_); }
  Matmul(Matmul const&) = delete;
  Matmul& operator=(Matmul const&) = delete;

  blas::Matmul get() const { return matmul_; }

 private:
  template <typename T>
  void set(blas::MatmulAttribute which, T const& value) {
    session_.check(session_.api().matmul_set(matmul_, which, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }

  blas::Session const& session_;
  blas::Matmul matmul_ = nullptr;
};

}  // namespace

// cuBLASLt reads columns: yᵀ[n, m] = (W as columns [k, n])ᵀ · xᵀ[k, m].
class DenseProduct::Problem {
 public:
  Problem(blas::Session const& session, Shape const& shape, int64_t m)
      : matmul(session, shape),
        w(session, shape.type, shape.k, shape.n),
        x(session, shape.type, shape.k, m),
        y(session, shape.type, shape.n, m) {}

  Matmul matmul;
  Layout w;
  Layout x;
  Layout y;
};

DenseProduct::DenseProduct(std::shared_ptr<blas::Session> session, Shape const& shape, int64_t m,
                           DenseAlgorithm const& algorithm)
    : session_(std::move(session)), problem_(std::make_unique<Problem>(*session_, shape, m)), algorithm_(algorithm) {
  auto const& p = *problem_;
  blas::Result result;
  if (!algorithm.given()) {
    algorithm_ = algorithms(1).front();
  }
  session_->check(session_->api().check(session_->handle(), p.matmul.get(), p.w.get(), p.x.get(), p.y.get(), p.y.get(),
                                        &algorithm_, &result),
                  "cublasLtMatmulAlgoCheck");
  workspace_ = result.workspace;
}

DenseProduct::~DenseProduct() = default;

std::vector<DenseAlgorithm> DenseProduct::algorithms(int most) const {
  auto const& api = session_->api();
  auto const& p = *problem_;
  blas::Preference preference = nullptr;
  session_->check(api.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  std::unique_ptr<void, blas::Status (*)(blas::Preference)> const held(preference, api.preference_destroy);
  auto const set = [&](blas::PreferenceAttribute which, auto value) {
    session_->check(api.preference_set(preference, which, &value, sizeof value),
                    "cublasLtMatmulPreferenceSetAttribute");
  };
  set(blas::kMostWorkspace, uint64_t{kMostWorkspace});
  for (auto const which : {blas::kAlignmentA, blas::kAlignmentB, blas::kAlignmentC, blas::kAlignmentD}) {
    set(which, kAlignment);
  }
  std::vector<blas::Result> results(static_cast<size_t>(most));
  int count = 0;
  session_->check(api.heuristic(session_->handle(), p.matmul.get(), p.w.get(), p.x.get(), p.y.get(), p.y.get(),
                                preference, most, results.data(), &count),
                  "cublasLtMatmulAlgoGetHeuristic");
  std::vector<DenseAlgorithm> found;
  for (int i = 0; i < count; ++i) {
    if (results[static_cast<size_t>(i)].state == 0) {
      found.push_back(results[static_cast<size_t>(i)].algorithm);
    }
  }
  if (found.empty()) {
    throw LibraryError("cuBLASLt has no algorithm for this product");
  }
  return found;
}

void DenseProduct::run(void const* weight, void const* x, void* y, void* workspace, cudaStream_t stream) const {
  auto const& p = *problem_;
  session_->check(session_->api().matmul(session_->handle(), p.matmul.get(), &kOne, weight, p.w.get(), x, p.x.get(),
                                         &kZero, y, p.y.get(), y, p.y.get(), &algorithm_, workspace, workspace_, stream),
                  "cublasLtMatmul");
}

}  // namespace sparseflow
