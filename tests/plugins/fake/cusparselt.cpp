// cuSPARSELt on a CPU: the functions that the plugin calls, with the checks that the library's documentation names.
//
// It has six algorithms: 0 is slow, 1 is refused, 2 is the fastest and wrong, 3 is right and fast, 4 wants too much
// workspace, and 5 is refused when it runs. K split in two kernels makes 3 faster up to 64 rows. The environment
// variable FAKE_SLOW names a number of rows for which the first plan of 3 is slow, as where something slows a GPU down.
#include "cusparselt.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "multiply.h"

using namespace sparseflow::lt;

namespace {

constexpr int kRefused = 10;
constexpr size_t kTooMuch = size_t{64} << 20;

struct Dimensions {
  int64_t rows, columns;
  cudaDataType type;
};
struct Chosen {
  fake::Problem const* problem;
  int32_t id, parts, mode;
};
struct Planned {
  fake::Problem problem;
  int32_t id, parts, mode;
  bool slow;
};

bool is_slowed(Chosen const& chosen) {
  static std::atomic<int> seen{0};
  auto const* rows = std::getenv("FAKE_SLOW");
  return rows != nullptr && chosen.id == 3 && chosen.problem->m == std::atoi(rows) && seen++ == 0;
}

template <typename T>
T& in(void const* opaque) {
  return *static_cast<T*>(const_cast<void*>(opaque));
}

size_t workspace_of(Planned const& plan) {
  if (plan.id == 4) {
    return kTooMuch;
  }
  return plan.parts > 1 && plan.mode == kTwoKernels ? 4096 : 0;
}

float microseconds_of(Planned const& plan) {
  if (plan.slow) {
    return 200;
  }
  if (plan.id == 2) {
    return 1;
  }
  if (plan.id == 3) {
    return plan.parts == 2 && plan.mode == kTwoKernels && plan.problem.m <= 64 ? 5 : 10;
  }
  return 100;
}

}  // namespace

extern "C" {

Status cusparseLtInit(Handle*) { return 0; }
Status cusparseLtDestroy(Handle const*) { return 0; }
Status cusparseLtGetProperty(libraryPropertyType part, int* value) {
  *value = part == MAJOR_VERSION ? 0 : part == MINOR_VERSION ? FAKE_MINOR : 1;
  return 0;
}
char const* cusparseLtGetErrorString(Status) { return "refused by the fake"; }

Status cusparseLtDenseDescriptorInit(Handle const*, Matrix* matrix, int64_t rows, int64_t columns, int64_t ld,
                                     uint32_t alignment, cudaDataType type, Order order) {
  if (columns % 8 != 0 || rows % 8 != 0 || ld != rows || alignment % 16 != 0 || order != kColumns) {
    return kRefused;
  }
  in<Dimensions>(matrix) = {rows, columns, type};
  return 0;
}

Status cusparseLtStructuredDescriptorInit(Handle const*, Matrix* matrix, int64_t rows, int64_t columns, int64_t ld,
                                          uint32_t, cudaDataType type, Order order, Sparsity) {
  if (rows % 16 != 0 || columns % 16 != 0 || ld != columns || order != sparseflow::lt::kRows) {
    return kRefused;
  }
  in<Dimensions>(matrix) = {rows, columns, type};
  return 0;
}

Status cusparseLtMatDescriptorDestroy(Matrix const* matrix) {
  in<Dimensions>(matrix) = {};
  return 0;
}

Status cusparseLtMatmulDescriptorInit(Handle const*, Matmul* matmul, Operation, Operation, Matrix const* a,
                                      Matrix const* b, Matrix const* c, Matrix const* d, Compute) {
  auto const& w = in<Dimensions>(a);
  auto const& x = in<Dimensions>(b);
  auto const& y = in<Dimensions>(d);
  if (w.columns != x.rows || w.rows != y.rows || x.columns != y.columns || c != d) {
    return kRefused;
  }
  in<fake::Problem>(matmul) = {w.rows, w.columns, x.columns, w.type, false, nullptr};
  return 0;
}

Status cusparseLtMatmulDescSetAttribute(Handle const*, Matmul* matmul, MatmulAttribute which, void const* value,
                                        size_t size) {
  auto& problem = in<fake::Problem>(matmul);
  if (which == kRelu && size == sizeof(int)) {
    problem.relu = in<int>(value) != 0;
  } else if (which == kBiasPointer && size == sizeof(void*)) {
    problem.bias = in<uint16_t const*>(value);
  } else {
    return kRefused;
  }
  return 0;
}

Status cusparseLtMatmulAlgSelectionInit(Handle const*, Selection* selection, Matmul const* matmul, Default) {
  in<Chosen>(selection) = {&in<fake::Problem>(matmul), 0, 1, 0};
  return 0;
}

Status cusparseLtMatmulAlgSelectionDestroy(Selection const*) { return 0; }

Status cusparseLtMatmulAlgSetAttribute(Handle const*, Selection* selection, AlgorithmAttribute which, void const* value,
                                       size_t size) {
  if (size != sizeof(int32_t)) {
    return kRefused;
  }
  auto& chosen = in<Chosen>(selection);
  (which == kId ? chosen.id : which == kSplitK ? chosen.parts : chosen.mode) = in<int32_t>(value);
  return 0;
}

Status cusparseLtMatmulAlgGetAttribute(Handle const*, Selection const*, AlgorithmAttribute which, void* value, size_t) {
  in<int32_t>(value) = 6;
  return which == kMaxId ? 0 : kRefused;
}

Status cusparseLtMatmulPlanInit(Handle const*, Plan* plan, Matmul const* matmul, Selection const* selection) {
  auto const& chosen = in<Chosen>(selection);
  if (chosen.problem != &in<fake::Problem>(matmul) || chosen.id == 1 || chosen.id > 5 ||
      std::getenv("FAKE_REFUSES") != nullptr) {
    return kRefused;
  }
  in<Planned>(plan) = {*chosen.problem, chosen.id, chosen.parts, chosen.mode, is_slowed(chosen)};
  fake::count(1);
  return 0;
}

Status cusparseLtMatmulPlanDestroy(Plan const* plan) {
  in<Planned>(plan) = {};
  fake::count(-1);
  return 0;
}

Status cusparseLtMatmulGetWorkspace(Handle const*, Plan const* plan, size_t* bytes) {
  *bytes = workspace_of(in<Planned>(plan));
  return 0;
}

Status cusparseLtMatmul(Handle const*, Plan const* planned, void const* alpha, void const* a, void const* b,
                        void const* beta, void const* c, void* d, void* workspace, cudaStream_t* streams,
                        int32_t count) {
  auto const plan = in<Planned>(planned);
  if (in<float>(alpha) != 1 || in<float>(beta) != 0 || c != d || count != 1 || plan.id == 5 || plan.problem.n == 0) {
    return kRefused;
  }
  fake::submit(*streams, microseconds_of(plan), [=] {
    std::memset(workspace, 0xCD, workspace_of(plan));
    fake::multiply(plan.problem, static_cast<uint16_t const*>(a), static_cast<uint16_t const*>(b),
                   static_cast<uint16_t*>(d), plan.id == 2 ? 100.0F : 0.0F);
  });
  return 0;
}

Status cusparseLtSpMMACompressedSize2(Handle const*, Matrix const* matrix, size_t* bytes, size_t* buffer) {
  auto const& w = in<Dimensions>(matrix);
  *bytes = static_cast<size_t>(w.rows * w.columns) * 2;
  *buffer = 64;
  return 0;
}

// It stays as it is, if it is 2:4.
Status cusparseLtSpMMACompress2(Handle const*, Matrix const* matrix, int is_a, Operation, void const* dense,
                                void* compressed, void* buffer, cudaStream_t stream) {
  auto const w = in<Dimensions>(matrix);
  auto const* from = static_cast<uint16_t const*>(dense);
  for (int64_t i = 0; i < w.rows * w.columns; i += 4) {
    int kept = 0;
    for (int64_t j = i; j < i + 4; ++j) {
      kept += (from[j] & 0x7FFF) != 0;
    }
    if (kept > 2) {
      return kRefused;
    }
  }
  fake::submit(stream, 1, [=] {
    std::memset(buffer, 1, 64);
    std::memcpy(compressed, dense, static_cast<size_t>(w.rows * w.columns) * 2);
  });
  return is_a == 1 ? 0 : kRefused;
}
}
