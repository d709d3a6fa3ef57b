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
constexpr int kRounds = 3;
constexpr int kInRound = 4;             // launches
constexpr size_t kAtLength = 6;         // the fastest so many
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

int compute_capability(int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.major * 10 + properties.minor;
}

std::string in_words(Algorithm const& algorithm) {
  return "cuSPARSELt's algorithm " + std::to_string(algorithm.id);
}

std::string in_words(DenseAlgorithm const&) { return "an algorithm of cuBLASLt"; }

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
      bench_.time(*timed.product, 1);
      if (!bench_.is_right()) {
        refused_ = in_words(timed.choice.algorithm) + " computes something else";
        log(Severity::kWarning, "M=" + std::to_string(m_) + ": " + refused_ + "; it is not used");
        continue;
      }
      timed.choice.microseconds = 0;
      finalists.push_back(&timed);
    }
    if (finalists.empty()) {
      throw LibraryError("there is no algorithm for " + std::to_string(m_) + " rows (" + refused_ + ")");
    }
    // In turn: a GPU that meets its power limit slows down, and the first would look the fastest.
    for (int round = 0; round < kRounds; ++round) {
      for (auto* const timed : finalists) {
        timed->choice.microseconds += bench_.time(*timed->product, kInRound) / kRounds;
      }
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

// On an H200 the FP16 algorithms from 36 on end in an illegal instruction: seen with 0.8.0 and 0.9.1, which say that
// they have 52.
int32_t safe_algorithms(Weights const& weights, SparseProduct const& product) {
  auto const count = std::max(product.algorithms(), 1);
  auto const unsafe = weights.shape().type == Type::kFp16 && compute_capability(weights.session().device()) == 90;
  return unsafe ? std::min(count, 36) : count;
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

// All are tried at each M: the fastest at one say little of another.
Choice measure(Layer const& layer, Weights const& weights, int64_t m) {
  Contest<Algorithm> contest(layer, weights, m, weights.compressed(), weights.compressed_size());
  auto const limit = limit_of_user();
  auto const first = weights.plan(m, Algorithm{});  // held, so that it is one of those that are timed
  auto const count = safe_algorithms(weights, *first);
  contest.enter(unsplit_algorithms(limit > 0 ? std::min(limit, count) : count));
  if (limit == 0 && m <= kMostSplitRows) {
    contest.enter(split_algorithms(contest.best(kSplitOf)));
  }
  return contest.winner();
}

DenseChoice measure_dense(Layer const& layer, Weights const& weights, int64_t m) {
  auto const size = static_cast<size_t>(layer.weight.n * layer.weight.k) * sizeof(uint16_t);
  Contest<DenseAlgorithm> contest(layer, weights, m, weights.dense(), size);
  contest.enter(weights.dense_algorithms(m, kMostDense));
  return contest.winner();
}

using Key = std::tuple<int, int64_t, int64_t, Type, Activation, bool, int64_t>;

template <typename ChoiceT, typename Measure>
ChoiceT known_or(std::map<Key, ChoiceT>& known, Layer const& layer, Weights const& weights, int64_t m,
                 Measure measured) {
  static std::mutex mutex;  // held meanwhile: two measurements at once disturb each other
  Key const key{weights.session().device(), layer.weight.n, layer.weight.k, layer.type, layer.activation,
                !layer.bias.empty(), m};
  std::lock_guard<std::mutex> const lock(mutex);
  auto found = known.find(key);
  if (found == known.end()) {
    found = known.emplace(key, measured(layer, weights, m)).first;
  }
  return found->second;
}

}  // namespace

Choice fastest(Layer const& layer, Weights const& weights, int64_t m) {
  static std::map<Key, Choice> known;
  return known_or(known, layer, weights, m, measure);
}

DenseChoice fastest_dense(Layer const& layer, Weights const& weights, int64_t m) {
  static std::map<Key, DenseChoice> known;
  return known_or(known, layer, weights, m, measure_dense);
}

std::string gpu_name(int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return std::string(properties.name) + " sm" + std::to_string(properties.major) + std::to_string(properties.minor) +
         " with " + std::to_string(properties.multiProcessorCount) + " multiprocessors";
}

}  // namespace sparseflow
