#include "choices.h"

namespace sparseflow {
namespace {

// From here on also half-way between two powers of two: tiles fill the GPU in whole waves, more or less well.
constexpr int64_t kHalfWay = 512;

// More rows run as so many do: the GPU is full long before, and measuring would take memory and time.
constexpr int64_t kMostMeasured = 16384;

}  // namespace

std::vector<int64_t> rows_to_measure(int64_t min_m, int64_t max_m) {
  auto const last = std::min(round_up(std::max<int64_t>(max_m, 1), kRows), kMostMeasured);
  auto const first = std::min(min_m, last);
  std::vector<int64_t> rows;
  if (max_m > kMostCopied && first > kRows && (min_m != max_m || split(max_m).tail != 0)) {
    rows.push_back(kRows);  // for tails
  }
  for (int64_t m = kRows; m < last; m *= 2) {
    if (m >= first) {
      rows.push_back(m);
    }
    if (auto const between = m / 2 * 3; m >= kHalfWay && between >= first && between < last) {
      rows.push_back(between);
    }
  }
  rows.push_back(last);
  return rows;
}

std::vector<int64_t> dense_rows_to_measure(int64_t min_m, int64_t max_m) {
  auto const last = std::min(std::max<int64_t>(max_m, 1), kMostMeasured);
  std::vector<int64_t> rows;
  for (int64_t m = 1; m < last; m *= 2) {
    if (m >= min_m) {
      rows.push_back(m);
    }
  }
  rows.push_back(last);
  return rows;
}

}  // namespace sparseflow
