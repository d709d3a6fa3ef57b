// cuBLASLt, found when a layer first has a dense weight: the plugin is not linked to it, and needs none of its headers.
//
// What is declared here is what the releases of CUDA 12 and 13 share (check_cublaslt.cpp holds it against a header).
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "choices.h"
#include "library.h"

namespace sparseflow::blas {

using Status = int;  // cublasStatus_t: 0 is success
using Handle = void*;
using Matmul = void*;      // cublasLtMatmulDesc_t
using Layout = void*;      // cublasLtMatrixLayout_t
using Preference = void*;  // cublasLtMatmulPreference_t

enum Compute : int { kFloat32 = 68 };
enum Operation : int { kNonTranspose = 0, kTranspose = 1 };
enum Epilogue : int { kPlain = 1, kRelu = 2, kBias = 4 };
enum MatmulAttribute : int { kTransposeA = 3, kEpilogue = 7, kBiasPointer = 8, kBiasType = 26 };
enum PreferenceAttribute : int {
  kMostWorkspace = 1, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7, kAlignmentD = 8
};

// cublasLtMatmulHeuristicResult_t
struct Result {
  DenseAlgorithm algorithm;
  size_t workspace = 0;
  Status state = 0;
  float waves = 0;
  int reserved[4] = {};
};
static_assert(sizeof(DenseAlgorithm) == 64 && sizeof(Result) == 96);

// The library's functions.
struct Api {
  Status (*create)(Handle*);
  Status (*destroy)(Handle);
  size_t (*version)();
  char const* (*error_string)(Status);
  Status (*matmul_create)(Matmul*, Compute, cudaDataType scale);
  Status (*matmul_destroy)(Matmul);
  Status (*matmul_set)(Matmul, MatmulAttribute, void const*, size_t);
  Status (*layout_create)(Layout*, cudaDataType, uint64_t rows, uint64_t columns, int64_t ld);
  Status (*layout_destroy)(Layout);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, PreferenceAttribute, void const*, size_t);
  Status (*heuristic)(Handle, Matmul, Layout a, Layout b, Layout c, Layout d, Preference, int asked, Result*, int* got);
  Status (*check)(Handle, Matmul, Layout a, Layout b, Layout c, Layout d, DenseAlgorithm const*, Result*);
  Status (*matmul)(Handle, Matmul, void const* alpha, void const* a, Layout, void const* b, Layout, void const* beta,
                   void const* c, Layout, void* d, Layout, DenseAlgorithm const*, void* workspace, size_t, cudaStream_t);
};

// The library on one GPU; several threads may use it.
class Session {
 public:
  Session();
  ~Session();
  Session(Session const&) = delete;
  Session& operator=(Session const&) = delete;

  Api const& api() const { return *api_; }
  Handle handle() const { return handle_; }
  int version() const { return version_; }

  // Throws LibraryError where a call of the library fails.
  void check(Status status, char const* what) const;

 private:
  Api const* api_;
  int version_;
  Handle handle_ = nullptr;
};

// The session of this thread's GPU, made where there is none. Throws LibraryError.
std::shared_ptr<Session> session();

}  // namespace sparseflow::blas
