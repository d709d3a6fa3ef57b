#include "packed.h"

#include <algorithm>
#include <array>
#include <string>

#include "bytes.h"

namespace sparseflow {
namespace {

constexpr int64_t kMost = int64_t{1} << 31;  // cuSPARSELt counts rows in 32 bits; products stay in 64
constexpr int64_t kMultiple = 16;            // of n and of k, for 16-bit numbers

bool is_pair(unsigned nibble) { return (nibble & 3U) < (nibble >> 2U); }

std::array<bool, 256> make_valid() {
  std::array<bool, 256> valid{};
  for (unsigned byte = 0; byte < valid.size(); ++byte) {
    valid[byte] = is_pair(byte & 15U) && is_pair(byte >> 4U);
  }
  return valid;
}

}  // namespace

void check(Packed const& packed) {
  auto const n = packed.n;
  auto const k = packed.k;
  if (n <= 0 || k <= 0 || n >= kMost || k >= kMost || n % kMultiple != 0 || k % kMultiple != 0) {
    throw FormatError("a weight of " + std::to_string(n) + " x " + std::to_string(k) +
                      " has no 2:4 product here: both have to be multiples of " + std::to_string(kMultiple));
  }
  auto const groups_of_two = static_cast<uint64_t>(n) * static_cast<uint64_t>(k / 8);
  if (packed.values.size() != groups_of_two * 4 || packed.indices.size() != groups_of_two) {
    throw FormatError("a weight of " + std::to_string(n) + " x " + std::to_string(k) + " comes with " +
                      std::to_string(packed.values.size()) + " values and " +
                      std::to_string(packed.indices.size()) + " bytes of indices");
  }
  static std::array<bool, 256> const valid = make_valid();
  if (!std::all_of(packed.indices.begin(), packed.indices.end(), [](uint8_t byte) { return valid[byte]; })) {
    throw FormatError("its indices are not in rising order");
  }
}

void expand(Packed const& packed, int64_t first, int64_t count, uint16_t* dense) {
  auto const groups = count * packed.k / 4;
  auto const* value = packed.values.data() + first * packed.k / 2;
  auto const* index = packed.indices.data() + first * packed.k / 8;
  std::fill_n(dense, groups * 4, uint16_t{0});
  for (int64_t group = 0; group < groups; ++group) {
    unsigned const nibble = index[group / 2] >> (group % 2 * 4) & 15U;
    dense[group * 4 + (nibble & 3U)] = value[group * 2];
    dense[group * 4 + (nibble >> 2U)] = value[group * 2 + 1];
  }
}

}  // namespace sparseflow
