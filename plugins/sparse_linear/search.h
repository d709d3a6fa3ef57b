// Measures which algorithm is the fastest.
#pragma once

#include <cstdint>
#include <string>

#include "choices.h"
#include "weights.h"

namespace sparseflow {

// The fastest of cuSPARSELt's algorithms for m rows, K split or not, timed as CUDA graphs. Measured once in a process
// for a shape: a network has many layers alike. None that takes more than kMostWorkspace, or whose result is wrong,
// is chosen. Throws LibraryError where there is none, and cuda::Error.
Choice fastest(Layer const& layer, Weights const& weights, int64_t m);

// The same of cuBLASLt's, among those that its heuristic names.
DenseChoice fastest_dense(Layer const& layer, Weights const& weights, int64_t m);

// The faster of two algorithms for m rows, timed in turn. Measured once in a process for a shape. Throws as `fastest`
// does.
Choice faster_of(Layer const& layer, Weights const& weights, int64_t m, Algorithm const& one, Algorithm const& other);
DenseChoice faster_of(Layer const& layer, Weights const& weights, int64_t m, DenseAlgorithm const& one,
                      DenseAlgorithm const& other);

// What measurements hold for: the GPU's name, compute capability and number of multiprocessors. Throws cuda::Error.
std::string gpu_name(int device);

}  // namespace sparseflow
