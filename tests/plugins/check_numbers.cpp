// Holds each FP16 and BF16 number against what the compiler's own types make of it.
#include "numbers.h"

#include <cstdio>

namespace {

bool is_same(float value, float expected) {
  return std::isnan(expected) ? std::isnan(value) : std::memcmp(&value, &expected, sizeof value) == 0;
}

}  // namespace

int main() {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    auto const bits = static_cast<uint16_t>(i);
    _Float16 half = 0;
    std::memcpy(&half, &bits, sizeof half);
    if (!is_same(sparseflow::float_from_fp16(bits), static_cast<float>(half))) {
      std::printf("FP16 0x%04x is %g\n", i, static_cast<double>(sparseflow::float_from_fp16(bits)));
      return 1;
    }
    uint32_t back = 0;
    auto const value = sparseflow::float_from_bf16(bits);
    std::memcpy(&back, &value, sizeof back);
    if (back != i << 16) {
      std::printf("BF16 0x%04x is %g\n", i, static_cast<double>(value));
      return 1;
    }
  }
}
