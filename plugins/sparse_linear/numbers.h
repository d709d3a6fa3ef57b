// What the bits of FP16 and BF16 numbers are worth, in FP32: in C++17, which has neither type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace sparseflow {

inline float float_from_fp16(uint16_t bits) {
  auto const exponent = static_cast<int>(bits >> 10 & 31U);
  auto const mantissa = static_cast<float>(bits & 1023U);
  float const size = exponent == 31  ? (mantissa == 0 ? std::numeric_limits<float>::infinity() : NAN)
                     : exponent == 0 ? std::ldexp(mantissa, -24)
                                     : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000U) != 0 ? -size : size;
}

inline float float_from_bf16(uint16_t bits) {
  uint32_t const wide = uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

}  // namespace sparseflow
