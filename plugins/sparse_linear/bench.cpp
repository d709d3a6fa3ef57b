#include "bench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <random>

#include "numbers.h"
#include "packed.h"

namespace sparseflow {
namespace {

constexpr int kFewestInGraph = 10;     // products in a row: the launch of a graph is not to count
constexpr size_t kMostCopies = 128;    // of a weight, each for a product in the graph
constexpr int64_t kPattern = 1 << 20;  // numbers of random input, repeated
constexpr int kChecked = 8;            // rows and columns of y that are held against the host's

// The nearest towards zero that FP16 or BF16 has; of what FP16 has no normal number for, zero.
uint16_t truncated(float value, Type type) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  if (type == Type::kBf16) {
    return static_cast<uint16_t>(bits >> 16);
  }
  auto const sign = bits >> 16 & 0x8000U;
  auto const exponent = static_cast<int>(bits >> 23 & 255U) - 127 + 15;
  auto const size = exponent < 1 ? 0 : static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 1023U);
  return static_cast<uint16_t>(sign | size);
}

// Of the normal distribution, as activations nearly are: by their bits a GPU takes more power or less, and a large
// product that meets the power limit is as fast as that lets it be.
std::vector<uint16_t> make_random_numbers(Type type) {
  std::minstd_rand random(0);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> numbers(kPattern);
  for (auto& number : numbers) {
    number = truncated(normal(random), type);
  }
  return numbers;
}

std::vector<uint16_t> const& random_numbers(Type type) {
  static auto const fp16 = make_random_numbers(Type::kFp16);
  static auto const bf16 = make_random_numbers(Type::kBf16);
  return type == Type::kFp16 ? fp16 : bf16;
}

float number_of(uint16_t bits, Type type) {
  return type == Type::kFp16 ? float_from_fp16(bits) : float_from_bf16(bits);
}

cuda::Memory random_input(int64_t count, Type type, cudaStream_t stream) {
  auto memory = cuda::allocate(static_cast<size_t>(count) * sizeof(uint16_t));
  auto const& numbers = random_numbers(type);
  for (int64_t at = 0; at < count; at += kPattern) {
    auto const bytes = static_cast<size_t>(std::min(kPattern, count - at)) * sizeof(uint16_t);
    cuda::check(cudaMemcpyAsync(static_cast<uint16_t*>(memory.get()) + at, numbers.data(), bytes,
                                cudaMemcpyHostToDevice, stream),
                "writing the input of a measurement");
  }
  cuda::check(cudaStreamSynchronize(stream), "writing the input of a measurement");
  return memory;
}

// How many copies of a weight do not stay in the GPU's cache together, as in a network they do not. They take twice the
// cache and one more; of a weight so small that kMostCopies do not, some stay.
size_t copies_beyond_cache(size_t size) {
  int cache = 0;
  cuda::check(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, cuda::current_device()), "asking for the cache");
  auto const wanted = 2 * static_cast<size_t>(std::max(cache, 0)) / std::max<size_t>(size, 1) + 1;
  return std::min(wanted, kMostCopies);
}

// Where the i-th of kChecked samples of `count` rows or columns lies.
int64_t sample(int i, int64_t count) { return i * (count - 1) / (kChecked - 1); }

}  // namespace

Bench::Bench(Layer const& layer, int64_t m, void const* weight, size_t size)
    : layer_(layer),
      m_(m),
      stream_(cuda::new_stream()),
      begin_(cuda::new_event()),
      end_(cuda::new_event()),
      x_(random_input(m * layer.weight.k, layer.type, stream_.get())),
      y_(cuda::allocate(static_cast<size_t>(m * layer.weight.n) * sizeof(uint16_t))),
      workspace_(cuda::allocate(kMostWorkspace)),
      weights_{weight},
      in_graph_(kFewestInGraph) {
  auto const aligned = (size + 255) / 256 * 256;
  auto const more = copies_beyond_cache(size) - 1;
  copies_ = cuda::allocate(aligned * more);
  for (size_t i = 0; i < more; ++i) {
    auto* const copy = static_cast<char*>(copies_.get()) + i * aligned;
    cuda::check(cudaMemcpyAsync(copy, weight, size, cudaMemcpyDeviceToDevice, stream_.get()), "copying weights");
    weights_.push_back(copy);
  }
  in_graph_ = std::max(kFewestInGraph, static_cast<int>(weights_.size()));
}

float Bench::time(Product const& product, int launches) {
  auto const graph = capture(product);
  float best = std::numeric_limits<float>::infinity();
  for (int i = 0; i < launches; ++i) {
    best = std::min(best, time(graph));
  }
  return best;
}

std::vector<float> Bench::time_in_turn(std::vector<Product const*> const& products, int rounds) {
  std::vector<cuda::GraphExec> graphs;
  for (auto const* product : products) {
    graphs.push_back(capture(*product));
  }
  std::vector<std::vector<float>> times(products.size());
  for (int round = 0; round <= rounds; ++round) {
    for (size_t i = 0; i < graphs.size(); ++i) {
      auto const microseconds = time(graphs[i]);
      if (round > 0) {  // the first warms up
        times[i].push_back(microseconds);
      }
    }
  }
  std::vector<float> medians;
  for (auto& all : times) {
    auto const middle = all.begin() + rounds / 2;
    std::nth_element(all.begin(), middle, all.end());
    medians.push_back(*middle);
  }
  return medians;
}

void Bench::run(Product const& product) {
  // Other layers leave the workspace as they like; so it is here.
  cuda::check(cudaMemsetAsync(workspace_.get(), 0x5A, product.workspace(), stream_.get()), "filling a workspace");
  run(product, 0);
  cuda::check(cudaStreamSynchronize(stream_.get()), "running a product");
}

float Bench::time(cuda::GraphExec const& graph) {
  cuda::check(cudaEventRecord(begin_.get(), stream_.get()), "cudaEventRecord");
  cuda::check(cudaGraphLaunch(graph.get(), stream_.get()), "cudaGraphLaunch");
  cuda::check(cudaEventRecord(end_.get(), stream_.get()), "cudaEventRecord");
  cuda::check(cudaEventSynchronize(end_.get()), "timing a product");
  float milliseconds = 0;
  cuda::check(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "timing a product");
  return milliseconds * 1000 / static_cast<float>(in_graph_);
}

void Bench::run(Product const& product, int turn) {
  auto const* weight = weights_[static_cast<size_t>(turn) % weights_.size()];
  product.run(weight, x_.get(), y_.get(), workspace_.get(), stream_.get());
}

cuda::GraphExec Bench::capture(Product const& product) {
  run(product);  // what is loaded lazily is loaded here
  cuda::check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  std::exception_ptr failed;
  try {
    for (int i = 0; i < in_graph_; ++i) {
      run(product, i);
    }
  } catch (...) {
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

bool Bench::is_right() {
  auto const& weight = layer_.weight;
  auto const& x = random_numbers(layer_.type);
  std::vector<uint16_t> row(static_cast<size_t>(weight.k));
  double const roundoff = layer_.type == Type::kFp16 ? 0x1p-10 : 0x1p-7;
  for (int i = 0; i < kChecked; ++i) {
    auto const column = sample(i, weight.n);
    expand(weight, column, 1, row.data());
    for (int j = 0; j < kChecked; ++j) {
      auto const at = sample(j, m_);
      double sum = layer_.bias.empty() ? 0 : number_of(layer_.bias[static_cast<size_t>(column)], layer_.type);
      double size = std::abs(sum);
      for (int64_t k = 0; k < weight.k; ++k) {
        double const term = double{number_of(row[static_cast<size_t>(k)], layer_.type)} *
                            number_of(x[static_cast<size_t>((at * weight.k + k) % kPattern)], layer_.type);
        sum += term;
        size += std::abs(term);
      }
      if (layer_.activation == Activation::kRelu) {
        sum = std::max(sum, 0.0);
      }
      uint16_t got = 0;
      cuda::check(cudaMemcpyAsync(&got, static_cast<uint16_t const*>(y_.get()) + at * weight.n + column, sizeof got,
                                  cudaMemcpyDeviceToHost, stream_.get()),
                  "reading a result");
      cuda::check(cudaStreamSynchronize(stream_.get()), "reading a result");
      // Sums that leave FP16's range, or weights that are no numbers, say nothing.
      if (std::abs(sum) < 60000 && !(std::abs(number_of(got, layer_.type) - sum) <=
                                     roundoff * std::abs(sum) + 1e-3 * size + 1e-6)) {
        return false;
      }
    }
  }
  return true;
}

bool Bench::is_alive() {
  cudaGetLastError();
  return cudaStreamSynchronize(stream_.get()) == cudaSuccess;
}

}  // namespace sparseflow
