// 2:4 weights in 9/16 of their dense size: what is kept of each group of four, and where it stood.
// sparseflow_trt/model/packing.py is the reference of this format.
#pragma once

#include <cstdint>
#include <vector>

namespace sparseflow {

// A weight W[n, k] of 16-bit numbers, 2:4 along k.
struct Packed {
  int64_t n = 0;
  int64_t k = 0;
  std::vector<uint16_t> values;  // [n, k / 2]: two of each group of four, in the order of k
  std::vector<uint8_t> indices;  // [n, k / 8]: a byte for two groups, the first one in the low nibble;
                                 // in a nibble first | second << 2, and first < second
};

// Throws FormatError where the sizes do not fit or an index is none.
void check(Packed const& packed);

// Writes rows [first, first + count) of W to dense[count, k].
void expand(Packed const& packed, int64_t first, int64_t count, uint16_t* dense);

}  // namespace sparseflow
