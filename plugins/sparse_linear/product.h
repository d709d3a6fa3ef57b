// One product y = activation(x · Wᵀ + bias) with a fixed number of rows, planned: sparse (cuSPARSELt) or dense
// (cuBLASLt).
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

#include "record.h"

namespace sparseflow {

// The most workspace of a product, in bytes. TensorRT asks for it before all is measured, so it does not depend
// on that; a network's layers share it.
constexpr size_t kMostWorkspace = size_t{32} << 20;

// What both libraries are told: y is 1 · W · x + 0 · y, and of all pointers how they are aligned, in bytes.
constexpr float kOne = 1;
constexpr float kZero = 0;
constexpr uint32_t kAlignment = 16;

// What products of a layer have in common. The bias lies in the memory of one GPU; null where there is none.
struct Shape {
  int64_t n = 0;
  int64_t k = 0;
  Type type = Type::kFp16;
  Activation activation = Activation::kNone;
  void const* bias = nullptr;
};

inline cudaDataType cuda_type(Type type) { return type == Type::kFp16 ? CUDA_R_16F : CUDA_R_16BF; }

class Product {
 public:
  Product() = default;
  virtual ~Product() = default;
  Product(Product const&) = delete;
  Product& operator=(Product const&) = delete;

  // Bytes that `run` needs.
  virtual size_t workspace() const = 0;

  // Puts y[m, n] = … x[m, k] on a stream: one call of the library, which allocates nothing and waits for nothing.
  // `weight` is as the library reads it; the pointers are aligned to 16 bytes. Throws LibraryError.
  virtual void run(void const* weight, void const* x, void* y, void* workspace, cudaStream_t stream) const = 0;
};

}  // namespace sparseflow
