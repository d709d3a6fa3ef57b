// The plugin's products on a GPU without TensorRT: `plugin_layer K N M…` prints a line of JSON for each type and M.
//
// One layer of random 2:4 weights [N, K] is measured as an engine's would be, sparse by cuSPARSELt and, as a layer
// that is dense below any M, by cuBLASLt, each with its algorithms searched. The two are timed in turn, and some rows
// of both are held against sums in double precision. M are multiples of 8.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench.h"
#include "linear.h"
#include "log.h"
#include "numbers.h"

namespace sparseflow {

void log(Severity severity, std::string const& message) noexcept {
  if (severity != Severity::kVerbose) {
    std::fprintf(stderr, "%s\n", message.c_str());
  }
}

namespace {

constexpr int kRounds = 9;
constexpr int kLaunches = 5;     // of a graph, in each round
constexpr int64_t kChecked = 8;  // rows that are held against the host's

float wide(uint16_t bits, Type type) {
  return type == Type::kBf16 ? float_from_bf16(bits) : float_from_fp16(bits);
}

uint16_t narrow(float value, Type type) {
  uint16_t bits = 0;
  if (type == Type::kBf16) {
    uint32_t all = 0;
    std::memcpy(&all, &value, sizeof all);
    return static_cast<uint16_t>((all + 0x7FFF + (all >> 16 & 1)) >> 16);
  }
  auto const half = static_cast<_Float16>(value);
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

Layer make_layer(Type type, int64_t n, int64_t k, int64_t dense_below_m) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(k)));
  uint8_t const pairs[] = {4, 8, 12, 9, 13, 14};
  Layer layer;
  layer.type = type;
  layer.dense_below_m = dense_below_m;
  layer.weight.n = n;
  layer.weight.k = k;
  for (int64_t i = 0; i < n * k / 2; ++i) {
    layer.weight.values.push_back(narrow(normal(random), type));
  }
  for (int64_t i = 0; i < n * k / 8; ++i) {
    layer.weight.indices.push_back(static_cast<uint8_t>(pairs[random() % 6] | pairs[random() % 6] << 4));
  }
  check(layer);
  return layer;
}

// Copies 16-bit numbers, behind what is on the stream, and waits for it.
void copy(void* to, void const* from, size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  cuda::check(cudaMemcpyAsync(to, from, count * sizeof(uint16_t), kind, stream), "copying");
  cuda::check(cudaStreamSynchronize(stream), "copying");
}

// A layer as an engine holds it once it is built for M up to `most`, in a context.
struct Built {
  Built(Type type, int64_t n, int64_t k, int64_t dense_below_m, int64_t least, int64_t most)
      : linear(std::make_shared<Linear>(Record{make_layer(type, n, k, dense_below_m), {}})),
        weights(linear->weights()),
        products(linear, weights),
        workspace(cuda::allocate(Products::workspace(linear->layer().weight, most))) {
    linear->measure(*weights, least, most);
  }

  std::vector<uint16_t> run(int64_t m, void const* x) {
    auto const count = static_cast<size_t>(m * linear->layer().weight.n);
    auto const y = cuda::allocate(count * sizeof(uint16_t));
    auto const stream = cuda::new_stream();
    products.prepare(m);
    products.run(m, x, y.get(), workspace.get(), stream.get());
    std::vector<uint16_t> numbers(count);
    copy(numbers.data(), y.get(), count, cudaMemcpyDeviceToHost, stream.get());
    return numbers;
  }

  std::shared_ptr<Linear> linear;
  std::shared_ptr<Weights> weights;
  Products products;
  cuda::Memory workspace;
};

// Where the i-th of the rows that are checked lies; the last is the last of m.
int64_t checked_row(int64_t i, int64_t m) { return i * (m - 1) / (kChecked - 1); }

// The rows that are checked of x · Wᵀ, summed in double precision.
std::vector<double> exact_rows(Layer const& layer, int64_t m, std::vector<uint16_t> const& x) {
  auto const n = layer.weight.n;
  auto const k = layer.weight.k;
  std::vector<uint16_t> dense(static_cast<size_t>(n * k));
  expand(layer.weight, 0, n, dense.data());
  std::vector<double> row(static_cast<size_t>(k));
  std::vector<double> sums;
  for (int64_t i = 0; i < kChecked; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      row[static_cast<size_t>(j)] = wide(x[static_cast<size_t>(checked_row(i, m) * k + j)], layer.type);
    }
    for (int64_t column = 0; column < n; ++column) {
      double sum = 0;
      for (int64_t j = 0; j < k; ++j) {
        sum += row[static_cast<size_t>(j)] * wide(dense[static_cast<size_t>(column * k + j)], layer.type);
      }
      sums.push_back(sum);
    }
  }
  return sums;
}

// The relative L2 of those rows of y.
double error_of(std::vector<double> const& exact, Layer const& layer, int64_t m, std::vector<uint16_t> const& y) {
  auto const n = layer.weight.n;
  double off = 0;
  double all = 0;
  for (int64_t i = 0; i < kChecked; ++i) {
    for (int64_t column = 0; column < n; ++column) {
      auto const sum = exact[static_cast<size_t>(i * n + column)];
      auto const difference = wide(y[static_cast<size_t>(checked_row(i, m) * n + column)], layer.type) - sum;
      off += difference * difference;
      all += sum * sum;
    }
  }
  return std::sqrt(off / all);
}

void print(char const* name, std::vector<float> const& numbers) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < numbers.size(); ++i) {
    std::printf("%s%.3f", i == 0 ? "" : ", ", numbers[i]);
  }
  std::printf("], ");
}

void run(Type type, int64_t k, int64_t n, std::vector<int64_t> const& rows) {
  auto const least = rows.front();
  auto const most = rows.back();
  Built sparse(type, n, k, 0, least, most);
  Built dense(type, n, k, most + 1, least, most);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (auto const m : rows) {
    std::vector<uint16_t> x(static_cast<size_t>(m * k));
    for (auto& number : x) {
      number = narrow(normal(random), type);
    }
    auto const input = cuda::allocate(x.size() * sizeof(uint16_t));
    copy(input.get(), x.data(), x.size(), cudaMemcpyHostToDevice, cuda::new_stream().get());
    auto const& layer = sparse.linear->layer();
    auto const exact = exact_rows(layer, m, x);
    auto const sparse_error = error_of(exact, layer, m, sparse.run(m, input.get()));
    auto const dense_error = error_of(exact, layer, m, dense.run(m, input.get()));

    auto const algorithm = sparse.linear->algorithm(m);
    auto const one = sparse.weights->plan(m, algorithm);
    auto const other = dense.weights->plan(m, dense.linear->dense_algorithm(m));
    Bench first(layer, m, sparse.weights->compressed(), sparse.weights->compressed_size());
    Bench second(layer, m, dense.weights->dense(), static_cast<size_t>(n * k) * sizeof(uint16_t));
    std::vector<float> sparse_us;
    std::vector<float> dense_us;
    for (int round = 0; round <= kRounds; ++round) {
      auto const a = first.time_in_turn({one.get()}, kLaunches)[0];
      auto const b = second.time_in_turn({other.get()}, kLaunches)[0];
      if (round > 0) {  // the first warms up
        sparse_us.push_back(a);
        dense_us.push_back(b);
      }
    }
    std::printf("{\"type\": \"%s\", \"k\": %lld, \"n\": %lld, \"m\": %lld, ", type == Type::kFp16 ? "fp16" : "bf16",
                static_cast<long long>(k), static_cast<long long>(n), static_cast<long long>(m));
    print("sparse_us", sparse_us);
    print("dense_us", dense_us);
    std::printf("\"algorithm\": %d, \"split_k\": %d, \"sparse_error\": %.6g, \"dense_error\": %.6g}\n", algorithm.id,
                algorithm.split_k, sparse_error, dense_error);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace sparseflow

int main(int count, char** words) {
  std::vector<int64_t> numbers;
  for (int i = 1; i < count; ++i) {
    numbers.push_back(std::atoll(words[i]));
  }
  if (numbers.size() < 3) {
    std::fprintf(stderr, "usage: plugin_layer K N M...\n");
    return 2;
  }
  try {
    for (auto const type : {sparseflow::Type::kFp16, sparseflow::Type::kBf16}) {
      sparseflow::run(type, numbers[0], numbers[1], {numbers.begin() + 2, numbers.end()});
    }
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
