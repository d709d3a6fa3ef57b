#include "sparse.h"

#include <utility>

namespace sparseflow {
namespace {

// cuSPARSELt computes D = A · B with a sparse A. So yᵀ = W · xᵀ, and both transposes are rows read as columns.
class Columns {
 public:
  Columns(lt::Session const& session, int64_t rows, int64_t columns, Type type) : session_(session) {
    session.check(session.api().dense(session.handle(), &matrix_, rows, columns, rows, kAlignment, cuda_type(type),
                                      lt::kColumns),
                  "cusparseLtDenseDescriptorInit");
  }
  ~Columns() { session_.api().matrix_destroy(&matrix_); }
  Columns(Columns const&) = delete;
  Columns& operator=(Columns const&) = delete;

  lt::Matrix const* get() const { return &matrix_; }

 private:
  lt::Session const& session_;
  lt::Matrix matrix_{};
};

}  // namespace

WeightMatrix::WeightMatrix(lt::Session const& session, Shape const& shape) : session_(session) {
  session.check(session.api().structured(session.handle(), &matrix_, shape.n, shape.k, shape.k, kAlignment,
                                         cuda_type(shape.type), lt::kRows, lt::kHalf),
                "cusparseLtStructuredDescriptorInit");
}

class SparseProduct::Matrices {
 public:
  Matrices(lt::Session const& session, Shape const& shape, int64_t m)
      : w(session, shape), x(session, shape.k, m, shape.type), y(session, shape.n, m, shape.type) {}

  WeightMatrix w;
  Columns x;
  Columns y;
};

SparseProduct::SparseProduct(std::shared_ptr<lt::Session> session, Shape const& shape, int64_t m,
                             Algorithm const& algorithm)
    : session_(std::move(session)),
      matrices_(std::make_unique<Matrices>(*session_, shape, m)),
      matmul_(std::make_unique<lt::Matmul>()) {
  auto const& api = session_->api();
  auto const* handle = session_->handle();
  session_->check(api.matmul_init(handle, matmul_.get(), lt::kNonTranspose, lt::kNonTranspose, matrices_->w.get(),
                                  matrices_->x.get(), matrices_->y.get(), matrices_->y.get(), lt::kFloat32),
                  "cusparseLtMatmulDescriptorInit");
  if (shape.activation == Activation::kRelu) {
    int const on = 1;
    session_->check(api.matmul_set(handle, matmul_.get(), lt::kRelu, &on, sizeof on),
                    "setting cuSPARSELt's ReLU");
  }
  if (shape.bias != nullptr) {
    session_->check(api.matmul_set(handle, matmul_.get(), lt::kBiasPointer, &shape.bias, sizeof shape.bias),
                    "setting cuSPARSELt's bias");
  }
  select(algorithm);
  plan();
}

SparseProduct::~SparseProduct() = default;

void SparseProduct::select(Algorithm const& algorithm) {
  auto const& api = session_->api();
  auto const* handle = session_->handle();
  auto selection = std::make_unique<lt::Selection>();
  session_->check(api.selection_init(handle, selection.get(), matmul_.get(), lt::kDefault),
                  "cusparseLtMatmulAlgSelectionInit");
  selection_ = Held<lt::Selection>(selection.release(), [session = session_](lt::Selection* held) {
    session->api().selection_destroy(held);
    delete held;
  });
  auto const set = [&](lt::AlgorithmAttribute which, int32_t value, char const* what) {
    session_->check(api.selection_set(handle, selection_.get(), which, &value, sizeof value), what);
  };
  set(lt::kId, algorithm.id, "choosing cuSPARSELt's algorithm");
  if (algorithm.split_k != 1) {
    set(lt::kSplitK, algorithm.split_k, "splitting K");
    set(lt::kSplitKMode, algorithm.split_k_mode, "choosing how K is split");
    if (algorithm.split_k_buffers != 0) {
      set(lt::kSplitKBuffers, algorithm.split_k_buffers, "choosing the buffers of a split K");
    }
  }
}

void SparseProduct::plan() {
  auto const& api = session_->api();
  auto plan = std::make_unique<lt::Plan>();
  session_->check(api.plan_init(session_->handle(), plan.get(), matmul_.get(), selection_.get()),
                  "cusparseLtMatmulPlanInit");
  plan_ = Held<lt::Plan>(plan.release(), [session = session_](lt::Plan* held) {
    session->api().plan_destroy(held);
    delete held;
  });
  session_->check(api.workspace(session_->handle(), plan_.get(), &workspace_), "cusparseLtMatmulGetWorkspace");
}

void SparseProduct::run(void const* weight, void const* x, void* y, void* workspace, cudaStream_t stream) const {
  std::lock_guard<std::mutex> const lock(running_);
  session_->check(session_->api().matmul(session_->handle(), plan_.get(), &kOne, weight, x, &kZero, y, y, workspace,
                                         &stream, 1),
                  "cusparseLtMatmul");
}

int32_t SparseProduct::algorithms() const {
  int32_t value = 0;
  session_->check(session_->api().selection_get(session_->handle(), selection_.get(), lt::kMaxId, &value, sizeof value),
                  "cusparseLtMatmulAlgGetAttribute");
  return value;
}

}  // namespace sparseflow
