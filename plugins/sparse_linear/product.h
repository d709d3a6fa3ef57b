// cuSPARSELt's plan of one product y = activation(x · Wᵀ + bias) with a fixed number of rows.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "choices.h"
#include "cusparselt.h"
#include "record.h"

namespace sparseflow {

// The most workspace of a product, in bytes. TensorRT asks for it before all is measured, so it does not depend
// on that; a network's layers share it.
constexpr size_t kMostWorkspace = size_t{32} << 20;

// A weight as cuSPARSELt reads it, in the memory of one GPU.
struct WeightView {
  int64_t n = 0;
  int64_t k = 0;
  Type type = Type::kFp16;
  Activation activation = Activation::kNone;
  void const* compressed = nullptr;
  void const* bias = nullptr;  // null where there is none
};

// The library's descriptor of W, for compressing it and for planning.
class WeightMatrix {
 public:
  WeightMatrix(lt::Session const& session, int64_t n, int64_t k, Type type);
  ~WeightMatrix() { session_.api().matrix_destroy(&matrix_); }
  WeightMatrix(WeightMatrix const&) = delete;
  WeightMatrix& operator=(WeightMatrix const&) = delete;

  lt::Matrix const* get() const { return &matrix_; }

 private:
  lt::Session const& session_;
  lt::Matrix matrix_{};
};

// Planned on the host; running it is one call that allocates nothing and waits for nothing.
class Product {
 public:
  // Throws lt::Error where the library does not take it. `m` is a multiple of kRows.
  Product(std::shared_ptr<lt::Session> session, WeightView const& weight, int64_t m, Algorithm const& algorithm);
  ~Product();  // not in the header: Matrices is known in product.cpp
  Product(Product const&) = delete;
  Product& operator=(Product const&) = delete;

  size_t workspace() const { return workspace_; }

  // Puts y[m, n] = … x[m, k] on a stream. The pointers are aligned to 16 bytes.
  void run(void const* x, void* y, void* workspace, cudaStream_t stream) const;

  // How many algorithms the library has for it.
  int32_t algorithms() const;

  // What the library chooses by timing; y and the workspace are written, and the stream is waited for.
  Algorithm search(void const* x, void* y, void* workspace, cudaStream_t stream);

 private:
  class Matrices;
  template <typename T>
  using Held = std::unique_ptr<T, std::function<void(T*)>>;

  void select(Algorithm const& algorithm);
  void plan();
  int32_t attribute(lt::AlgorithmAttribute which) const;

  std::shared_ptr<lt::Session> session_;
  void const* compressed_;
  std::unique_ptr<Matrices> matrices_;
  std::unique_ptr<lt::Matmul> matmul_;
  Held<lt::Selection> selection_;
  Held<lt::Plan> plan_;
  size_t workspace_ = 0;
};

}  // namespace sparseflow
