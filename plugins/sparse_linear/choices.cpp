#include "choices.h"

#include <algorithm>

namespace sparseflow {
namespace {

// From here on also half-way between two powers of two: tiles fill the GPU in whole waves, more or less well.
constexpr int64_t kHalfWay = 512;

bool before(Choice const& choice, int64_t m) { return choice.m < m; }

}  // namespace

std::vector<int64_t> rows_to_measure(int64_t min_m, int64_t max_m) {
  auto const last = round_up(std::max<int64_t>(max_m, 1), kRows);
  auto const first = std::min(min_m, last);
  std::vector<int64_t> rows;
  if (last > kMostCopied && first > kRows && (min_m != max_m || split(max_m).tail != 0)) {
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

Choice const* choice_for(std::vector<Choice> const& choices, int64_t m) {
  if (choices.empty()) {
    return nullptr;
  }
  auto const found = std::lower_bound(choices.begin(), choices.end(), m, before);
  return found == choices.end() ? &choices.back() : &*found;
}

void insert(std::vector<Choice>& choices, Choice const& choice) {
  auto const place = std::lower_bound(choices.begin(), choices.end(), choice.m, before);
  if (place != choices.end() && place->m == choice.m) {
    *place = choice;
  } else {
    choices.insert(place, choice);
  }
}

}  // namespace sparseflow
