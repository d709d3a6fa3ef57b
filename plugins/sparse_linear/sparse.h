// cuSPARSELt's products.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include "choices.h"
#include "cusparselt.h"
#include "product.h"

namespace sparseflow {

// The library's descriptor of W, for compressing it and for planning.
class WeightMatrix {
 public:
  WeightMatrix(lt::Session const& session, Shape const& shape);
  ~WeightMatrix() { session_.api().matrix_destroy(&matrix_); }
  WeightMatrix(WeightMatrix const&) = delete;
  WeightMatrix& operator=(WeightMatrix const&) = delete;

  lt::Matrix const* get() const { return &matrix_; }

 private:
  lt::Session const& session_;
  lt::Matrix matrix_{};
};

class SparseProduct final : public Product {
 public:
  // Throws LibraryError where the library does not take it. `m` is a multiple of kRows.
  SparseProduct(std::shared_ptr<lt::Session> session, Shape const& shape, int64_t m, Algorithm const& algorithm);
  ~SparseProduct() override;  // not in the header: Matrices is known in sparse.cpp

  size_t workspace() const override { return workspace_; }
  void run(void const* weight, void const* x, void* y, void* workspace, cudaStream_t stream) const override;

  // How many algorithms the library has for it.
  int32_t algorithms() const;

 private:
  class Matrices;
  template <typename T>
  using Held = std::unique_ptr<T, std::function<void(T*)>>;

  void select(Algorithm const& algorithm);
  void plan();

  std::shared_ptr<lt::Session> session_;
  std::unique_ptr<Matrices> matrices_;
  std::unique_ptr<lt::Matmul> matmul_;
  Held<lt::Selection> selection_;
  Held<lt::Plan> plan_;
  size_t workspace_ = 0;
  mutable std::mutex running_;  // contexts share plans; cuSPARSELt does not say that two calls may use one at once
};

}  // namespace sparseflow
