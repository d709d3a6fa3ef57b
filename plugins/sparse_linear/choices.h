// Which of cuSPARSELt's algorithms computes a product of how many rows, as it was measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sparseflow {

// One of cuSPARSELt's algorithms, as its attributes name it.
struct Algorithm {
  int32_t id = 0;
  int32_t split_k = 1;
  int32_t split_k_mode = 0;
  int32_t split_k_buffers = 0;
};

struct Choice {
  int64_t m = 0;  // the number of rows that it was measured at
  Algorithm algorithm;
  uint64_t workspace = 0;  // bytes
  float microseconds = 0;  // of one product
};

// Choices in the order of m, and what they hold for.
struct Choices {
  std::string gpu;
  int32_t library = 0;  // cuSPARSELt's version
  std::vector<Choice> all;
};

// cuSPARSELt takes x with a multiple of this many rows.
constexpr int64_t kRows = 8;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// How m rows are computed: the first `whole` where they lie, the `tail` in a copy padded to kRows.
struct Split {
  int64_t whole = 0;
  int64_t tail = 0;
};

// Small products are copied whole, since a second one would read all of the weights once more.
constexpr int64_t kMostCopied = 256;

constexpr Split split(int64_t m) {
  if (m % kRows == 0) {
    return {m, 0};
  }
  return m <= kMostCopied ? Split{0, m} : Split{m / kRows * kRows, m % kRows};
}

// The most rows that are ever copied where there are at most m.
constexpr int64_t most_copied(int64_t m) { return m < kMostCopied ? round_up(m, kRows) : kMostCopied; }

// The numbers of rows to measure so that products of min_m to max_m rows are covered.
std::vector<int64_t> rows_to_measure(int64_t min_m, int64_t max_m);

// The choice for m rows: that of the next larger number measured, or of the largest; null where there is none.
Choice const* choice_for(std::vector<Choice> const& choices, int64_t m);

// Puts a choice in its place.
void insert(std::vector<Choice>& choices, Choice const& choice);

}  // namespace sparseflow
