// y = activation(x · Wᵀ + bias) in FP16 or BF16 on a CPU, summed in FP32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "library_types.h"
#include "numbers.h"

namespace fake {

inline float wide(uint16_t bits, cudaDataType type) {
  return type == CUDA_R_16F ? sparseflow::float_from_fp16(bits) : sparseflow::float_from_bf16(bits);
}

inline uint16_t narrow(float value, cudaDataType type) {
  uint16_t bits;
  if (type == CUDA_R_16F) {
    auto const half = static_cast<_Float16>(value);
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
  }
  uint32_t all;
  std::memcpy(&all, &value, sizeof all);
  return static_cast<uint16_t>((all + 0x7FFF + (all >> 16 & 1)) >> 16);
}

struct Problem {
  int64_t n, k, m;
  cudaDataType type;
  bool relu;
  uint16_t const* bias;
};

// Most of the tests' time. The sanitizers see every operand being read before, and every result being written.
[[gnu::no_sanitize("address", "undefined"), gnu::optimize("O2"), gnu::noinline]] inline float add_products(
    float sum, float const* a, float const* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

inline void multiply(Problem const& p, uint16_t const* w, uint16_t const* x, uint16_t* y, float error = 0) {
  auto const widened = [&](uint16_t const* from, int64_t count) {
    std::vector<float> numbers(static_cast<size_t>(count));
    std::transform(from, from + count, numbers.begin(), [&](uint16_t bits) { return wide(bits, p.type); });
    return numbers;
  };
  auto const weights = widened(w, p.n * p.k);
  auto const inputs = widened(x, p.m * p.k);
  auto const bias = p.bias ? widened(p.bias, p.n) : std::vector<float>(static_cast<size_t>(p.n));
  for (int64_t row = 0; row < p.m; ++row) {
    for (int64_t column = 0; column < p.n; ++column) {
      auto const sum = add_products(bias[static_cast<size_t>(column)], weights.data() + column * p.k,
                                    inputs.data() + row * p.k, p.k) +
                       error;
      y[row * p.n + column] = narrow(p.relu && sum < 0 ? 0 : sum, p.type);
    }
  }
}

}  // namespace fake
