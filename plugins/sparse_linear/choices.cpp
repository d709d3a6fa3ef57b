#include "choices.h"

namespace sparseflow {
namespace {

// From here on also half-way between two powers of two: tiles fill the GPU in whole waves, more or less well.
constexpr int64_t kHalfWay = 512;

// More rows run as so many do: the GPU is full long before, and measuring would take memory and time.
constexpr int64_t kMostMeasured = 16384;

// Whether a context may meet more than kMostExact numbers of rows: multiples of kRows, and kRows itself for tails.
bool is_shared(int64_t min_m, int64_t max_m) {
  auto const most = round_up(max_m, kRows) / kRows - min_m / kRows + 2;
  return max_m > kShared && most > static_cast<int64_t>(kMostExact);
}

}  // namespace

std::string in_words(Algorithm const& algorithm) {
  auto const split = algorithm.split_k == 1 ? "" : " with K split in " + std::to_string(algorithm.split_k);
  return "cuSPARSELt's algorithm " + std::to_string(algorithm.id) + split;
}

std::string in_words(DenseAlgorithm const& algorithm) {
  return algorithm.given() ? "an algorithm of cuBLASLt" : "what cuBLASLt's heuristic names first";
}

std::vector<int64_t> rows_to_measure(int64_t min_m, int64_t max_m) {
  auto const last = std::min(round_up(std::max<int64_t>(max_m, 1), kRows), kMostMeasured);
  auto const first = std::min(min_m, last);
  std::vector<int64_t> rows;
  // Tails: kRows, or what is left of a multiple of kShared.
  auto const shared = is_shared(min_m, max_m);
  auto const has_tails = shared || (max_m > kMostCopied && (min_m != max_m || split(max_m).tail != 0));
  auto const most_in_tail = shared ? kShared : kRows;
  for (int64_t m = kRows; has_tails && m <= most_in_tail && m < first; m *= 2) {
    rows.push_back(m);
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
