// Measures which of cuSPARSELt's algorithms is the fastest.
#pragma once

#include <cstdint>
#include <string>

#include "choices.h"
#include "weights.h"

namespace sparseflow {

// The fastest for m rows among all the library has and what its own search says, timed as CUDA graphs. Measured
// once in a process for a shape: a network has many layers alike. None that takes more than kMostWorkspace is
// chosen. Throws lt::Error where there is none, and cuda::Error.
Choice fastest(Weights const& weights, int64_t m);

// What measurements hold for: the GPU's name and compute capability. Throws cuda::Error.
std::string gpu_name(int device);

}  // namespace sparseflow
