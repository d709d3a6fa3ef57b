// cuBLASLt's products, for few rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "choices.h"
#include "cublaslt.h"
#include "product.h"

namespace sparseflow {

class DenseProduct final : public Product {
 public:
  // With the algorithm; without one as the library's heuristic says. Throws LibraryError where the library does not
  // take it for m rows, or has none.
  DenseProduct(std::shared_ptr<blas::Session> session, Shape const& shape, int64_t m, DenseAlgorithm const& algorithm);
  ~DenseProduct() override;  // not in the header: Problem is known in dense.cpp

  size_t workspace() const override { return workspace_; }
  void run(void const* weight, void const* x, void* y, void* workspace, cudaStream_t stream) const override;

  // The library's algorithms for this product, those first that its heuristic takes for the fastest.
  std::vector<DenseAlgorithm> algorithms(int most) const;

 private:
  class Problem;

  std::shared_ptr<blas::Session> session_;
  std::unique_ptr<Problem> problem_;
  DenseAlgorithm algorithm_;
  size_t workspace_ = 0;
};

}  // namespace sparseflow
