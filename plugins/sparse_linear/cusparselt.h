// cuSPARSELt, found when it is first needed: the plugin is not linked to it, and needs none of its headers.
//
// What is declared here is what the releases from 0.8 on share (check_cusparselt.cpp holds it against a header).
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "library.h"

namespace sparseflow::lt {

// The library's opaque objects take 512 bytes each in 0.8 to 0.10; more is reserved than they need.
struct alignas(64) Opaque {
  unsigned char bytes[2048];
};

struct Handle : Opaque {};
struct Matrix : Opaque {};
struct Matmul : Opaque {};
struct Selection : Opaque {};
struct Plan : Opaque {};

enum Operation : int { kNonTranspose = 0 };
enum Order : int { kColumns = 1, kRows = 2 };
enum Sparsity : int { kHalf = 0 };
enum Compute : int { kFloat32 = 2 };
enum MatmulAttribute : int { kRelu = 0, kBiasPointer = 8 };
enum SplitKMode : int { kOneKernel = 1, kTwoKernels = 2 };
enum Default : int { kDefault = 0 };
enum AlgorithmAttribute : int { kId = 0, kMaxId = 1, kSplitK = 3, kSplitKMode = 4, kSplitKBuffers = 5 };

using Status = int;  // cusparseStatus_t: 0 is success

// The library's functions.
struct Api {
  Status (*init)(Handle*);
  Status (*destroy)(Handle const*);
  Status (*get_property)(libraryPropertyType, int*);
  char const* (*error_string)(Status);
  Status (*dense)(Handle const*, Matrix*, int64_t rows, int64_t columns, int64_t ld, uint32_t alignment, cudaDataType,
                  Order);
  Status (*structured)(Handle const*, Matrix*, int64_t rows, int64_t columns, int64_t ld, uint32_t alignment,
                       cudaDataType, Order, Sparsity);
  Status (*matrix_destroy)(Matrix const*);
  Status (*matmul_init)(Handle const*, Matmul*, Operation, Operation, Matrix const* a, Matrix const* b, Matrix const* c,
                        Matrix const* d, Compute);
  Status (*matmul_set)(Handle const*, Matmul*, MatmulAttribute, void const*, size_t);
  Status (*selection_init)(Handle const*, Selection*, Matmul const*, Default);
  Status (*selection_destroy)(Selection const*);
  Status (*selection_set)(Handle const*, Selection*, AlgorithmAttribute, void const*, size_t);
  Status (*selection_get)(Handle const*, Selection const*, AlgorithmAttribute, void*, size_t);
  Status (*workspace)(Handle const*, Plan const*, size_t*);
  Status (*plan_init)(Handle const*, Plan*, Matmul const*, Selection const*);
  Status (*plan_destroy)(Plan const*);
  Status (*matmul)(Handle const*, Plan const*, void const* alpha, void const* a, void const* b, void const* beta,
                   void const* c, void* d, void* workspace, cudaStream_t*, int32_t);
  Status (*compressed_size)(Handle const*, Matrix const*, size_t*, size_t* buffer);
  Status (*compress)(Handle const*, Matrix const*, int is_a, Operation, void const* dense, void* compressed,
                     void* buffer, cudaStream_t);
};

// The library on one GPU. Several threads plan with it at once, and run products meanwhile; cuSPARSELt 0.9.1 bears that.
class Session {
 public:
  explicit Session(int device);
  ~Session();
  Session(Session const&) = delete;
  Session& operator=(Session const&) = delete;

  Api const& api() const { return *api_; }
  Handle const* handle() const { return &handle_; }
  int device() const { return device_; }
  int version() const { return version_; }  // 802 is 0.8.2, 1000 is 0.10.0

  // Throws LibraryError where a call of the library fails.
  void check(Status status, char const* what) const;

 private:
  Api const* api_;
  int device_;
  int version_;
  Handle handle_;
};

// A version in words: "0.9.1".
std::string in_words(int version);

// The session of this thread's GPU, made where there is none. Throws LibraryError.
std::shared_ptr<Session> session();

}  // namespace sparseflow::lt
