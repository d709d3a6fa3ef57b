#include "search.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "bench.h"
#include "log.h"

namespace sparseflow {
namespace {

constexpr int kShort = 2;               // launches that decide who is timed at length
constexpr int kRounds = 15;             // of a launch of each
constexpr size_t kAtLength = 8;         // the fastest so many
constexpr float kFar = 1.5F;            // slower than the fastest by this is out
constexpr int64_t kMostSplitRows = 512; // more rows make tiles enough for the whole GPU without splitting K
constexpr size_t kSplitOf = 3;          // so many of the fastest are tried with K split
constexpr int kMostDense = 16;          // of cuBLASLt's
constexpr char const* kVariable = "SPARSEFLOW_ALGORITHMS";

template <typename AlgorithmT>
struct Timed {
  ChoiceOf<AlgorithmT> choice;
  std::shared_ptr<Product const> product;
};

template <typename AlgorithmT>
bool faster(Timed<AlgorithmT> const& a, Timed<AlgorithmT> const& b) {
  return a.choice.microseconds < b.choice.microseconds;
}

// Candidates are planned side by side and timed one after another; what the library or the GPU refuses is left out.
template <typename AlgorithmT>
class Contest {
 public:
  Contest(Layer const& layer, Weights const& weights, int64_t m, void const* weight, size_t size)
      : weights_(weights), m_(m), bench_(layer, m, weight, size) {}

  void enter(std::vector<AlgorithmT> const& algorithms) {
    auto const products = weights_.plan_all(m_, algorithms, refused_);
    for (size_t i = 0; i < algorithms.size(); ++i) {
      if (products[i] && products[i]->workspace() <= kMostWorkspace) {
        time(algorithms[i], products[i]);
      }
    }
  }

  void time(AlgorithmT const& algorithm, std::shared_ptr<Product const> const& product) {
    try {
      auto const microseconds = bench_.time(*product, kShort);
      timed_.push_back({{m_, algorithm, product->workspace(), microseconds}, product});
    } catch (LibraryError const& error) {
      refused_ = error.what();
    } catch (cuda::Error const& error) {
      refused_ = error.what();
      if (!bench_.is_alive()) {
        throw LibraryError(in_words(algorithm) + " ends in an error that this process does not survive (" + refused_ +
                           "): set " + kVariable + " to the number of algorithms that are to be tried, from 0 on");
      }
    }
  }

  std::vector<AlgorithmT> best(size_t most) {
    std::sort(timed_.begin(), timed_.end(), faster<AlgorithmT>);
    std::vector<AlgorithmT> found;
    for (size_t i = 0; i < std::min(most, timed_.size()); ++i) {
      found.push_back(timed_[i].choice.algorithm);
    }
    return found;
  }

  ChoiceOf<AlgorithmT> winner() {
    std::sort(timed_.begin(), timed_.end(), faster<AlgorithmT>);
    auto const limit = timed_.empty() ? 0 : timed_.front().choice.microseconds * kFar;
    std::vector<Timed<AlgorithmT>*> finalists;
    for (auto& timed : timed_) {
      if (!finalists.empty() && (finalists.size() >= kAtLength || timed.choice.microseconds > limit)) {
        break;
      }
      bench_.run(*timed.product);
      if (!bench_.is_right()) {
        refused_ = in_words(timed.choice.algorithm) + " computes something else";
        log(Severity::kWarning, "M=" + std::to_string(m_) + ": " + refused_ + "; it is not used");
        continue;
      }
      finalists.push_back(&timed);
    }
    if (finalists.empty()) {
      throw LibraryError("there is no algorithm for " + std::to_string(m_) + " rows (" + refused_ + ")");
    }
    std::vector<Product const*> products;
    for (auto const* timed : finalists) {
      products.push_back(timed->product.get());
    }
    auto const medians = bench_.time_in_turn(products, kRounds);
    for (size_t i = 0; i < finalists.size(); ++i) {
      finalists[i]->choice.microseconds = medians[i];
    }
    return (*std::min_element(finalists.begin(), finalists.end(), [](auto const* a, auto const* b) {
             return faster(*a, *b);
           }))->choice;
  }

 private:
  Weights const& weights_;
  int64_t m_;
  Bench bench_;
  std::string refused_ = "there is none";
  std::vector<Timed<AlgorithmT>> timed_;
};

// How many of cuSPARSELt's algorithms are tried at most, unsplit; 0 for all that are safe, K split too. For a GPU on
// which one of them ends in an error that cannot be caught.
int32_t limit_of_user() {
  auto const* given = std::getenv(kVariable);
  return given == nullptr ? 0 : std::max(0, std::atoi(given));
}

std::vector<Algorithm> unsplit_algorithms(int32_t count) {
  std::vector<Algorithm> all;
  for (int32_t id = 0; id < count; ++id) {
    all.push_back({id, 1, 0, 0});
  }
  return all;
}

std::vector<Algorithm> split_algorithms(std::vector<Algorithm> const& fastest) {
  std::vector<Algorithm> all;
  for (auto const& unsplit : fastest) {
    for (int32_t const parts : {2, 4}) {
      for (int32_t const mode : {lt::kOneKernel, lt::kTwoKernels}) {
        all.push_back({unsplit.id, parts, mode, 0});
      }
    }
  }
  return all;
}

// As the library reads them.
struct Stored {
  void const* weight;
  size_t size;
};

Stored stored(Weights const& weights, Algorithm const&) { return {weights.compressed(), weights.compressed_size()}; }

Stored stored(Weights const& weights, DenseAlgorithm const&) {
  auto const& shape = weights.shape();
  return {weights.dense(), static_cast<size_t>(shape.n * shape.k) * sizeof(uint16_t)};
}

// All are tried at each M: the fastest at one say little of another.
void enter_all(Contest<Algorithm>& contest, Weights const& weights, int64_t m) {
  auto const limit = limit_of_user();
  auto const first = weights.plan(m, Algorithm{});  // held, so that it is one of those that are timed
  auto const count = std::min({std::max(first->algorithms(), 1), weights.safe_algorithms(), kMostAlgorithms});
  contest.enter(unsplit_algorithms(limit > 0 ? std::min(limit, count) : count));
  if (limit == 0 && m <= kMostSplitRows) {
    contest.enter(split_algorithms(contest.best(kSplitOf)));
  }
}

void enter_all(Contest<DenseAlgorithm>& contest, Weights const& weights, int64_t m) {
  contest.enter(weights.dense_algorithms(m, kMostDense));
}

// What was measured in this process.
using Key = std::tuple<int, int64_t, int64_t, Type, Activation, bool, int64_t>;

template <typename AlgorithmT>
struct Pair {
  Key key;
  AlgorithmT one, other;
  ChoiceOf<AlgorithmT> faster;
};

template <typename AlgorithmT>
struct Known {
  std::map<Key, ChoiceOf<AlgorithmT>> fastest;
  std::vector<Pair<AlgorithmT>> pairs;
};

template <typename AlgorithmT>
Known<AlgorithmT>& known() {
  static Known<AlgorithmT> all;
  return all;
}

// Held meanwhile, by measurements of both kinds: two at once disturb each other.
std::mutex& measuring() {
  static std::mutex mutex;
  return mutex;
}

Key key_of(Layer const& layer, Weights const& weights, int64_t m) {
  return {weights.session().device(), layer.weight.n, layer.weight.k, layer.type, layer.activation,
          !layer.bias.empty(), m};
}

// The winner of a contest of those that `enter` puts into it.
template <typename AlgorithmT, typename Enter>
ChoiceOf<AlgorithmT> measure(Layer const& layer, Weights const& weights, int64_t m, Enter const& enter) {
  auto const [weight, size] = stored(weights, AlgorithmT{});
  Contest<AlgorithmT> contest(layer, weights, m, weight, size);
  enter(contest);
  return contest.winner();
}

template <typename AlgorithmT>
ChoiceOf<AlgorithmT> fastest_of(Layer const& layer, Weights const& weights, int64_t m) {
  auto const key = key_of(layer, weights, m);
  std::lock_guard<std::mutex> const lock(measuring());
  auto& all = known<AlgorithmT>().fastest;
  auto found = all.find(key);
  if (found == all.end()) {
    auto const enter = [&](auto& contest) { enter_all(contest, weights, m); };
    found = all.emplace(key, measure<AlgorithmT>(layer, weights, m, enter)).first;
  }
  return found->second;
}

template <typename AlgorithmT>
ChoiceOf<AlgorithmT> faster_of_two(Layer const& layer, Weights const& weights, int64_t m, AlgorithmT const& one,
                                   AlgorithmT const& other) {
  auto const key = key_of(layer, weights, m);
  std::lock_guard<std::mutex> const lock(measuring());
  auto& all = known<AlgorithmT>().pairs;
  for (auto const& pair : all) {
    if (pair.key == key && is_same(pair.one, one) && is_same(pair.other, other)) {
      return pair.faster;
    }
  }
  auto const enter = [&](auto& contest) { contest.enter({one, other}); };
  all.push_back({key, one, other, measure<AlgorithmT>(layer, weights, m, enter)});
  return all.back().faster;
}

}  // namespace

Choice fastest(Layer const& layer, Weights const& weights, int64_t m) {
  return fastest_of<Algorithm>(layer, weights, m);
}

DenseChoice fastest_dense(Layer const& layer, Weights const& weights, int64_t m) {
  return fastest_of<DenseAlgorithm>(layer, weights, m);
}

Choice faster_of(Layer const& layer, Weights const& weights, int64_t m, Algorithm const& one, Algorithm const& other) {
  return faster_of_two(layer, weights, m, one, other);
}

DenseChoice faster_of(Layer const& layer, Weights const& weights, int64_t m, DenseAlgorithm const& one,
                      DenseAlgorithm const& other) {
  return faster_of_two(layer, weights, m, one, other);
}

std::string gpu_name(int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return std::string(properties.name) + " sm" + std::to_string(properties.major) + std::to_string(properties.minor) +
         " with " + std::to_string(properties.multiProcessorCount) + " multiprocessors";
}

}  // namespace sparseflow
