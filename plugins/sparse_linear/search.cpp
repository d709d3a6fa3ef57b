#include "search.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

namespace sparseflow {
namespace {

constexpr int kInGraph = 10;             // products in a row: the launch of a graph is not to count
constexpr int kShort = 2;                // launches that decide who is timed at length
constexpr int kLong = 12;
constexpr size_t kAtLength = 6;          // the fastest so many
constexpr float kFar = 1.5F;             // slower than the fastest by this is out
constexpr int64_t kPattern = 1 << 20;    // numbers of random input, repeated

// Numbers between -1 and 1, as FP16 or BF16: the power that zeros save would flatter large tiles.
std::vector<uint16_t> random_numbers(Type type) {
  std::minstd_rand random(0);
  std::vector<uint16_t> numbers(kPattern);
  for (auto& number : numbers) {
    auto const bits = static_cast<uint32_t>(random());
    number = type == Type::kFp16 ? static_cast<uint16_t>((bits & 0x83FFU) | 0x3800U)   // ±[0.5, 1)
                                 : static_cast<uint16_t>((bits & 0x807FU) | 0x3F00U);  // ±[0.5, 1)
  }
  return numbers;
}

cuda::Memory random_input(int64_t count, Type type, cudaStream_t stream) {
  auto memory = cuda::allocate(static_cast<size_t>(count) * sizeof(uint16_t));
  auto const numbers = random_numbers(type);
  for (int64_t at = 0; at < count; at += kPattern) {
    auto const bytes = static_cast<size_t>(std::min(kPattern, count - at)) * sizeof(uint16_t);
    cuda::check(cudaMemcpyAsync(static_cast<uint16_t*>(memory.get()) + at, numbers.data(), bytes,
                                cudaMemcpyHostToDevice, stream),
                "writing the input of a measurement");
  }
  cuda::check(cudaStreamSynchronize(stream), "writing the input of a measurement");
  return memory;
}

// The buffers, stream and events of one measurement.
class Bench {
 public:
  Bench(Weights const& weights, int64_t m)
      : stream_(cuda::new_stream()),
        begin_(cuda::new_event()),
        end_(cuda::new_event()),
        x_(random_input(m * weights.view().k, weights.view().type, stream_.get())),
        y_(cuda::allocate(static_cast<size_t>(m * weights.view().n) * sizeof(uint16_t))) {}

  void reserve(size_t workspace) {
    if (workspace > size_) {
      workspace_ = cuda::allocate(workspace);
      size_ = workspace;
    }
  }

  Algorithm ask_library(Product& product) {
    reserve(product.workspace());
    return product.search(x_.get(), y_.get(), workspace_.get(), stream_.get());
  }

  // Microseconds of one product, the best of some launches.
  float time(Product const& product, int launches) {
    reserve(product.workspace());
    product.run(x_.get(), y_.get(), workspace_.get(), stream_.get());  // what is loaded lazily is loaded here
    cuda::check(cudaStreamSynchronize(stream_.get()), "running a product");
    auto const graph = capture(product);
    float best = std::numeric_limits<float>::infinity();
    for (int i = 0; i < launches; ++i) {
      cuda::check(cudaEventRecord(begin_.get(), stream_.get()), "cudaEventRecord");
      cuda::check(cudaGraphLaunch(graph.get(), stream_.get()), "cudaGraphLaunch");
      cuda::check(cudaEventRecord(end_.get(), stream_.get()), "cudaEventRecord");
      cuda::check(cudaEventSynchronize(end_.get()), "timing a product");
      float milliseconds = 0;
      cuda::check(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "timing a product");
      best = std::min(best, milliseconds * 1000 / kInGraph);
    }
    return best;
  }

 private:
  cuda::GraphExec capture(Product const& product) {
    cuda::check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    std::exception_ptr failed;
    try {
      for (int i = 0; i < kInGraph; ++i) {
        product.run(x_.get(), y_.get(), workspace_.get(), stream_.get());
      }
    } catch (lt::Error const&) {
      failed = std::current_exception();
    }
    cudaGraph_t graph = nullptr;
    auto const ended = cudaStreamEndCapture(stream_.get(), &graph);
    cuda::Graph const held(graph);
    if (failed) {
      std::rethrow_exception(failed);
    }
    cuda::check(ended, "cudaStreamEndCapture");
    cudaGraphExec_t made = nullptr;
    cuda::check(cudaGraphInstantiateWithFlags(&made, graph, 0), "cudaGraphInstantiateWithFlags");
    return cuda::GraphExec(made);
  }

  cuda::Stream stream_;
  cuda::Event begin_;
  cuda::Event end_;
  cuda::Memory x_;
  cuda::Memory y_;
  cuda::Memory workspace_;
  size_t size_ = 0;
};

bool same(Algorithm const& a, Algorithm const& b) {
  return a.id == b.id && a.split_k == b.split_k && (a.split_k == 1 || a.split_k_mode == b.split_k_mode);
}

std::vector<Algorithm> candidates(Weights const& weights, Bench& bench, int64_t m, std::string& refused) {
  auto const first = weights.plan(m, Algorithm{});
  std::vector<Algorithm> all;
  for (int32_t id = 0; id < std::max(first->algorithms(), 1); ++id) {
    all.push_back({id, 1, 0, 0});
  }
  try {
    auto const chosen = bench.ask_library(*first);
    if (std::none_of(all.begin(), all.end(), [&](Algorithm const& other) { return same(chosen, other); })) {
      all.push_back(chosen);
    }
  } catch (lt::Error const& error) {
    refused = error.what();  // its search is one more opinion, and not needed
  }
  return all;
}

Choice measure(Weights const& weights, int64_t m) {
  Bench bench(weights, m);
  std::string refused = "there is none";
  std::vector<std::pair<Choice, std::unique_ptr<Product>>> timed;
  for (auto const& algorithm : candidates(weights, bench, m, refused)) {
    try {
      auto product = weights.plan(m, algorithm);
      if (product->workspace() <= kMostWorkspace) {
        auto const microseconds = bench.time(*product, kShort);
        timed.emplace_back(Choice{m, algorithm, product->workspace(), microseconds}, std::move(product));
      }
    } catch (lt::Error const& error) {
      refused = error.what();  // some do not take some shapes
    }
  }
  if (timed.empty()) {
    throw lt::Error("cuSPARSELt has no algorithm for " + std::to_string(m) + " rows (" + refused + ")");
  }
  auto const faster = [](auto const& a, auto const& b) { return a.first.microseconds < b.first.microseconds; };
  std::sort(timed.begin(), timed.end(), faster);
  auto const limit = timed.front().first.microseconds * kFar;
  timed.resize(std::min(timed.size(), kAtLength));
  for (auto& [choice, product] : timed) {
    if (choice.microseconds <= limit) {
      choice.microseconds = bench.time(*product, kLong);
    }
  }
  return std::min_element(timed.begin(), timed.end(), faster)->first;
}

}  // namespace

Choice fastest(Weights const& weights, int64_t m) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, int64_t, Type, Activation, bool, int64_t>, Choice> known;
  auto const& view = weights.view();
  auto const key = std::make_tuple(weights.session()->device(), view.n, view.k, view.type, view.activation,
                                   view.bias != nullptr, m);
  std::lock_guard<std::mutex> const lock(mutex);  // held meanwhile: two measurements at once disturb each other
  auto found = known.find(key);
  if (found == known.end()) {
    found = known.emplace(key, measure(weights, m)).first;
  }
  return found->second;
}

std::string gpu_name(int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return std::string(properties.name) + " sm" + std::to_string(properties.major) + std::to_string(properties.minor);
}

}  // namespace sparseflow
