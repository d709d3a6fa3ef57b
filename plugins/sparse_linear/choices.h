// Which algorithm computes a product of how many rows, as it was measured.
#pragma once

#include <algorithm>
#include <array>
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

// One of cuBLASLt's, as its opaque cublasLtMatmulAlgo_t; with zeros alone its heuristic decides.
struct DenseAlgorithm {
  std::array<uint64_t, 8> words{};

  bool given() const { return words != decltype(words){}; }
};

inline bool is_same(Algorithm const& one, Algorithm const& other) {
  return one.id == other.id && one.split_k == other.split_k && one.split_k_mode == other.split_k_mode &&
         one.split_k_buffers == other.split_k_buffers;
}

inline bool is_same(DenseAlgorithm const& one, DenseAlgorithm const& other) { return one.words == other.words; }

// What a log calls them.
std::string in_words(Algorithm const& algorithm);
std::string in_words(DenseAlgorithm const& algorithm);

template <typename AlgorithmT>
struct ChoiceOf {
  int64_t m = 0;  // the number of rows that it was measured at
  AlgorithmT algorithm;
  uint64_t workspace = 0;  // bytes
  float microseconds = 0;  // of one product
};

using Choice = ChoiceOf<Algorithm>;
using DenseChoice = ChoiceOf<DenseAlgorithm>;

// Choices in the order of m, and what they hold for.
struct Choices {
  std::string gpu;
  int32_t library = 0;        // cuSPARSELt's version
  int32_t dense_library = 0;  // cuBLASLt's; 0 where nothing is dense
  std::vector<Choice> all;
  std::vector<DenseChoice> dense;
};

// No number of cuSPARSELt's algorithms is this or more: 0.9.1 says that it has 52. More are neither tried nor read.
constexpr int32_t kMostAlgorithms = 256;

// cuSPARSELt takes x with a multiple of this many rows.
constexpr int64_t kRows = 8;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// How m rows are computed: the first `whole` and the last `tail` where they lie, each a multiple of kRows. The two may
// overlap: what they share is computed twice, and no row is copied. Or else all `copied`, into a copy padded to kRows.
struct Split {
  int64_t whole = 0;
  int64_t tail = 0;
  int64_t copied = 0;
};

// A tail reads all of the weights once more, and copies are memory traffic, too. (At M=300 on an H200 copying took 7
// and 16 µs of TinyLlama's gate and down, of which 8 rows take 8 and 13.)
constexpr int64_t kMostCopied = 512;

constexpr Split split(int64_t m) {
  if (m % kRows == 0) {
    return {m, 0, 0};
  }
  return m <= kMostCopied ? Split{0, 0, m} : Split{m / kRows * kRows, kRows, 0};
}

// After so many numbers of rows a context makes a new one of few, which are shared: each has a plan, which is a kernel
// that is compiled and kept.
constexpr size_t kMostExact = 64;
constexpr int64_t kShared = 256;

// How m rows are computed then: a multiple of kShared, and what is left of that.
constexpr Split split_shared(int64_t m) {
  return m <= kShared ? split(m) : Split{m / kShared * kShared, round_up(m % kShared, kRows), 0};
}

// The most rows that are ever copied where there are at most m.
constexpr int64_t most_copied(int64_t m) { return m < kMostCopied ? round_up(m, kRows) : kMostCopied; }

// The numbers of rows to measure so that sparse products of min_m to max_m rows are covered, and what they are made of.
std::vector<int64_t> rows_to_measure(int64_t min_m, int64_t max_m);

// The same for dense products, which take any number of rows.
std::vector<int64_t> dense_rows_to_measure(int64_t min_m, int64_t max_m);

// Where the first choice for m rows or more is.
template <typename ChoiceT>
auto place_of(std::vector<ChoiceT> const& choices, int64_t m) {
  return std::lower_bound(choices.begin(), choices.end(), m, [](auto const& c, int64_t value) { return c.m < value; });
}

// The choice for m rows: that of the next larger number measured, or of the largest; null where there is none.
template <typename ChoiceT>
ChoiceT const* choice_for(std::vector<ChoiceT> const& choices, int64_t m) {
  if (choices.empty()) {
    return nullptr;
  }
  auto const found = place_of(choices, m);
  return found == choices.end() ? &choices.back() : &*found;
}

template <typename ChoiceT>
bool is_known(std::vector<ChoiceT> const& choices, int64_t m) {
  auto const found = place_of(choices, m);
  return found != choices.end() && found->m == m;
}

// Puts a choice in its place.
template <typename ChoiceT>
void insert(std::vector<ChoiceT>& choices, ChoiceT const& choice) {
  auto const place = choices.begin() + (place_of(choices, choice.m) - choices.begin());
  if (place != choices.end() && place->m == choice.m) {
    *place = choice;
  } else {
    choices.insert(place, choice);
  }
}

// Mends what one measurement alone got wrong: a choice that is slower than the fastest of those for more rows becomes
// again(choice, that one), from the most rows to the fewest.
template <typename ChoiceT, typename Again>
void mend(std::vector<ChoiceT>& choices, Again const& again) {
  ChoiceT const* fastest = nullptr;
  for (auto choice = choices.rbegin(); choice != choices.rend(); ++choice) {
    if (fastest != nullptr && choice->microseconds > fastest->microseconds &&
        !is_same(choice->algorithm, fastest->algorithm)) {
      *choice = again(*choice, *fastest);
    }
    if (fastest == nullptr || choice->microseconds < fastest->microseconds) {
      fastest = &*choice;
    }
  }
}

}  // namespace sparseflow
