// cuBLASLt on a CPU: the functions that the plugin calls. Of its three algorithms the third is the fastest, the
// second does not take more than four rows, and the first is what the heuristic would choose.
#include "cublaslt.h"

#include <cstring>

#include "multiply.h"

using namespace sparseflow::blas;
using sparseflow::DenseAlgorithm;

namespace {

constexpr Status kRefused = 15;

struct Descriptor {
  int32_t transpose_a = 0;
  uint32_t epilogue = 1;
  void const* bias = nullptr;
  int32_t bias_type = -1;
};
struct Dimensions {
  cudaDataType type;
  uint64_t rows, columns;
};

DenseAlgorithm numbered(uint64_t number) {
  DenseAlgorithm algorithm;
  algorithm.words[0] = number;
  return algorithm;
}

}  // namespace

extern "C" {

Status cublasLtCreate(Handle* handle) {
  *handle = new int;
  return 0;
}
Status cublasLtDestroy(Handle handle) {
  delete static_cast<int*>(handle);
  return 0;
}
size_t cublasLtGetVersion() { return 130000; }
char const* cublasLtGetStatusString(Status) { return "refused by the fake"; }

Status cublasLtMatmulDescCreate(Matmul* matmul, Compute compute, cudaDataType scale) {
  *matmul = new Descriptor;
  return compute == kFloat32 && scale == CUDA_R_32F ? 0 : kRefused;
}
Status cublasLtMatmulDescDestroy(Matmul matmul) {
  delete static_cast<Descriptor*>(matmul);
  return 0;
}
Status cublasLtMatmulDescSetAttribute(Matmul matmul, MatmulAttribute which, void const* value, size_t size) {
  auto& descriptor = *static_cast<Descriptor*>(matmul);
  void* const to = which == kTransposeA    ? static_cast<void*>(&descriptor.transpose_a)
                   : which == kEpilogue    ? static_cast<void*>(&descriptor.epilogue)
                   : which == kBiasPointer ? static_cast<void*>(&descriptor.bias)
                                           : static_cast<void*>(&descriptor.bias_type);
  if (size != (which == kBiasPointer ? 8U : 4U)) {
    return kRefused;
  }
  std::memcpy(to, value, size);
  return 0;
}

Status cublasLtMatrixLayoutCreate(Layout* layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld) {
  *layout = new Dimensions{type, rows, columns};
  return static_cast<uint64_t>(ld) == rows ? 0 : kRefused;
}
Status cublasLtMatrixLayoutDestroy(Layout layout) {
  delete static_cast<Dimensions*>(layout);
  return 0;
}
Status cublasLtMatmulPreferenceCreate(Preference* preference) {
  *preference = new int;
  return 0;
}
Status cublasLtMatmulPreferenceDestroy(Preference preference) {
  delete static_cast<int*>(preference);
  return 0;
}
Status cublasLtMatmulPreferenceSetAttribute(Preference, PreferenceAttribute which, void const*, size_t size) {
  return size == (which == kMostWorkspace ? 8U : 4U) ? 0 : kRefused;
}

Status cublasLtMatmulAlgoCheck(Handle, Matmul, Layout, Layout x, Layout, Layout, DenseAlgorithm const* algorithm,
                               Result* result) {
  auto const number = algorithm->words[0];
  if (number < 1 || number > 3 || (number == 2 && static_cast<Dimensions*>(x)->columns > 4)) {
    return kRefused;
  }
  result->workspace = number == 3 ? 1024 : 0;
  return 0;
}

Status cublasLtMatmulAlgoGetHeuristic(Handle, Matmul, Layout, Layout, Layout, Layout, Preference, int asked,
                                      Result* results, int* got) {
  *got = asked < 3 ? asked : 3;
  for (int i = 0; i < *got; ++i) {
    results[i].algorithm = numbered(static_cast<uint64_t>(i) + 1);
  }
  return 0;
}

Status cublasLtMatmul(Handle, Matmul matmul, void const* alpha, void const* a, Layout wl, void const* b, Layout xl,
                      void const* beta, void const* c, Layout, void* d, Layout yl, DenseAlgorithm const* algorithm,
                      void* workspace, size_t bytes, cudaStream_t stream) {
  auto const& descriptor = *static_cast<Descriptor*>(matmul);
  auto const& w = *static_cast<Dimensions*>(wl);
  auto const& x = *static_cast<Dimensions*>(xl);
  auto const& y = *static_cast<Dimensions*>(yl);
  auto const number = algorithm->words[0];
  auto const relu = (descriptor.epilogue & kRelu) != 0;
  auto const bias = (descriptor.epilogue & kBias) != 0;
  if (*static_cast<float const*>(alpha) != 1 || *static_cast<float const*>(beta) != 0 || c != d ||
      descriptor.transpose_a != kTranspose || w.rows != x.rows || y.rows != w.columns || y.columns != x.columns ||
      bias != (descriptor.bias != nullptr) || (bias && descriptor.bias_type != w.type) ||
      (!bias && !relu && descriptor.epilogue != kPlain) || bytes < (number == 3 ? 1024U : 0U)) {
    return kRefused;
  }
  fake::Problem const problem{static_cast<int64_t>(w.columns), static_cast<int64_t>(w.rows),
                              static_cast<int64_t>(x.columns), w.type, relu,
                              bias ? static_cast<uint16_t const*>(descriptor.bias) : nullptr};
  fake::submit(stream, number == 3 ? 4.0F : 8.0F, [=] {
    std::memset(workspace, 0xCD, bytes);
    fake::multiply(problem, static_cast<uint16_t const*>(a), static_cast<uint16_t const*>(b),
                   static_cast<uint16_t*>(d));
  });
  return 0;
}
}
