// Drives a layer as TensorRT does through the plugin, on the CPU libraries in fake/: `drive_layer CHECK`.
//
// Exits with 1 and one line on stderr where a check fails; the sanitizers that it is compiled with say the rest.
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "fake/multiply.h"
#include "linear.h"
#include "log.h"

#define REQUIRE(condition) require(condition, #condition, __LINE__)

namespace sparseflow {

std::mutex log_mutex;
std::vector<std::string> logged;

void log(Severity, std::string const& message) noexcept {
  std::lock_guard<std::mutex> const lock(log_mutex);
  logged.push_back(message);
}

namespace {

void require(bool condition, char const* what, int line) {
  if (!condition) {
    throw std::runtime_error("line " + std::to_string(line) + ": " + what);
  }
}

bool was_logged(std::string const& part) {
  for (auto const& line : logged) {
    if (line.find(part) != std::string::npos) {
      return true;
    }
  }
  return false;
}

struct Setting {
  Type type = Type::kFp16;
  Activation activation = Activation::kNone;
  bool bias = true;
  int64_t dense_below_m = 0;
};

Record make_record(Setting const& setting, int64_t n = 16, int64_t k = 32) {
  std::minstd_rand random(1);
  auto const number = [&] {
    return fake::narrow(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 1000, cuda_type(setting.type));
  };
  uint8_t const pairs[] = {4, 8, 12, 9, 13, 14};
  Record record;
  auto& layer = record.layer;
  layer.type = setting.type;
  layer.activation = setting.activation;
  layer.dense_below_m = setting.dense_below_m;
  layer.weight.n = n;
  layer.weight.k = k;
  for (int64_t i = 0; i < n * k / 2; ++i) {
    layer.weight.values.push_back(number());
  }
  for (int64_t i = 0; i < n * k / 8; ++i) {
    layer.weight.indices.push_back(static_cast<uint8_t>(pairs[random() % 6] | pairs[random() % 6] << 4));
  }
  for (int64_t i = 0; setting.bias && i < n; ++i) {
    layer.bias.push_back(number());
  }
  check(layer);
  return record;
}

// One context: its products, its stream, its memory of exactly the sizes that TensorRT was told.
struct Context {
  Context(std::shared_ptr<Linear> layer, int64_t most)
      : linear(std::move(layer)),
        products(linear, linear->weights()),
        stream(cuda::new_stream()),
        most_rows(most),
        workspace(cuda::allocate(Products::workspace(linear->layer().weight, most))) {}

  // Runs m rows, on the host's terms: nothing is allocated and nothing waited for once it is prepared.
  void run(int64_t m, unsigned seed, bool prepared = true) {
    auto const& layer = linear->layer();
    auto const& weight = layer.weight;
    std::minstd_rand random(seed);
    std::vector<uint16_t> x(static_cast<size_t>(m * weight.k));
    for (auto& value : x) {
      value = fake::narrow(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 1000, cuda_type(layer.type));
    }
    std::vector<uint16_t> dense(static_cast<size_t>(weight.n * weight.k));
    std::vector<uint16_t> y(static_cast<size_t>(m * weight.n));
    std::vector<uint16_t> exact(y.size());
    expand(weight, 0, weight.n, dense.data());
    fake::multiply({weight.n, weight.k, m, cuda_type(layer.type), layer.activation == Activation::kRelu,
                    layer.bias.empty() ? nullptr : layer.bias.data()},
                   dense.data(), x.data(), exact.data());
    if (prepared) {
      products.prepare(m);
      fake::forbid();
    }
    products.run(m, x.data(), y.data(), workspace.get(), stream.get());
    REQUIRE(!prepared || fake::allow() == 0);
    REQUIRE(y == exact);
  }

  std::shared_ptr<Linear> linear;
  Products products;
  cuda::Stream stream;
  int64_t most_rows;
  cuda::Memory workspace;
};

int64_t const kRowsTried[] = {1, 2, 7, 8, 9, 31, 32, 33, 64, 255, 256, 257, 300, 301};

std::shared_ptr<Linear> built(Setting const& setting, int64_t most = 301) {
  auto linear = std::make_shared<Linear>(make_record(setting));
  linear->measure(*linear->weights(), 1, most);
  return linear;
}

std::shared_ptr<Linear> reloaded(Linear const& linear) {
  auto const bytes = linear.written();
  REQUIRE(bytes.size() == linear.written_size());
  return std::make_shared<Linear>(read(bytes.data(), bytes.size()));
}

void every_setting_and_number_of_rows() {
  for (auto const type : {Type::kFp16, Type::kBf16}) {
    for (auto const activation : {Activation::kNone, Activation::kRelu}) {
      for (auto const bias : {false, true}) {
        for (int64_t const below : {0, 32}) {
          auto const linear = reloaded(*built({type, activation, bias, below}, 64));
          Context context(linear, 301);
          for (auto const m : kRowsTried) {
            context.run(m, static_cast<unsigned>(m));
          }
        }
      }
    }
  }
}

void the_fastest_right_algorithm_is_kept() {
  auto const linear = built({});
  REQUIRE(linear->algorithm(128).id == 3);
  REQUIRE(linear->algorithm(128).split_k == 1);
  REQUIRE(linear->algorithm(16).id == 3);
  REQUIRE(linear->algorithm(16).split_k == 2);
  REQUIRE(was_logged("algorithm 2 computes something else"));
  auto const again = reloaded(*linear);
  REQUIRE(again->algorithm(16).split_k == 2);
  logged.clear();
  Context(again, 301).run(16, 1);
  REQUIRE(logged.empty());  // nothing is measured again
}

void a_dense_algorithm_is_kept() {
  auto const linear = built({Type::kFp16, Activation::kNone, true, 32});
  REQUIRE(linear->dense_algorithm(1).words[0] == 3);
  REQUIRE(linear->dense_algorithm(31).words[0] == 3);
  REQUIRE(linear->algorithm(32).id == 3);
  auto const dense_alone = built({Type::kFp16, Activation::kNone, true, 1000});
  REQUIRE(dense_alone->is_measured());
  REQUIRE(dense_alone->algorithm(256).id == 0);  // none was measured
}

void another_gpu_measures_again() {
  auto const linear = built({Type::kFp16, Activation::kNone, true, 32});
  auto const bytes = linear->written();
  fake::name_gpu("Another");
  auto const elsewhere = std::make_shared<Linear>(read(bytes.data(), bytes.size()));
  logged.clear();
  Context context(elsewhere, 301);
  REQUIRE(was_logged("measured on Fake"));
  REQUIRE(elsewhere->algorithm(16).split_k == 2);
  context.run(100, 1);
  auto const moved = elsewhere->written();
  logged.clear();
  Context(std::make_shared<Linear>(read(moved.data(), moved.size())), 301).run(7, 1);
  REQUIRE(logged.empty());
}

void contexts_run_at_once() {
  auto const linear = built({Type::kFp16, Activation::kRelu, true, 20});
  std::vector<std::thread> threads;
  std::vector<std::string> failures(4);
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      try {
        Context context(linear, 64);
        std::minstd_rand random(seed + 1);
        for (int i = 0; i < 40; ++i) {
          context.run(1 + static_cast<int64_t>(random() % 64), seed, i % 2 == 0);
        }
      } catch (std::exception const& error) {
        failures[seed] = error.what();
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (auto const& failure : failures) {
    require(failure.empty(), failure.c_str(), 0);
  }
}

void a_run_is_captured() {
  auto const linear = built({Type::kFp16, Activation::kNone, true, 8});
  auto const& weight = linear->layer().weight;
  for (int64_t const m : {3, 9, 64, 301}) {
    Context context(linear, m);
    context.products.prepare(m);
    auto const x = cuda::allocate(static_cast<size_t>(m * weight.k) * 2);
    auto const y = cuda::allocate(static_cast<size_t>(m * weight.n) * 2);
    std::vector<uint16_t> exact(static_cast<size_t>(m * weight.n));
    std::vector<uint16_t> dense(static_cast<size_t>(weight.n * weight.k));
    expand(weight, 0, weight.n, dense.data());
    cuda::check(cudaStreamBeginCapture(context.stream.get(), cudaStreamCaptureModeRelaxed), "capturing");
    context.products.run(m, x.get(), y.get(), context.workspace.get(), context.stream.get());
    cudaGraph_t graph = nullptr;
    cuda::check(cudaStreamEndCapture(context.stream.get(), &graph), "capturing");
    cuda::Graph const held(graph);
    cudaGraphExec_t made = nullptr;
    cuda::check(cudaGraphInstantiateWithFlags(&made, graph, 0), "instantiating");
    cuda::GraphExec const replay(made);
    for (int i = 0; i < 600; ++i) {  // plans of other rows come and go meanwhile
      context.products.prepare(1 + i % m);
    }
    for (uint16_t value : {0x3C00, 0xBC00}) {
      std::fill_n(static_cast<uint16_t*>(x.get()), m * weight.k, value);
      cuda::check(cudaGraphLaunch(replay.get(), context.stream.get()), "launching");
      fake::multiply({weight.n, weight.k, m, CUDA_R_16F, false, linear->layer().bias.data()}, dense.data(),
                     static_cast<uint16_t const*>(x.get()), exact.data());
      REQUIRE(std::equal(exact.begin(), exact.end(), static_cast<uint16_t const*>(y.get())));
    }
  }
}

void more_numbers_of_rows_than_plans() {
  auto const linear = built({Type::kFp16, Activation::kNone, false, 0}, 64);
  Context context(linear, 9000);
  auto const before = fake::live();
  for (int64_t m = 8; m <= 160; m += 8) {
    context.products.prepare(m);
  }
  REQUIRE(fake::live() - before == 20);
  for (int64_t m = 9000; m > 0; m -= 8) {
    context.products.prepare(m);
  }
  // 64 as they came, what is left of 256 in steps of 8, and the multiples of 256
  REQUIRE(fake::live() - before <= 64 + 256 / 8 + 9000 / 256);
  for (int64_t const m : {8, 300, 511, 513, 2048, 4103, 8999, 9000}) {
    context.run(m, 3);
  }
}

void all_is_given_back() {
  auto const before = fake::live();
  {
    auto const linear = built({Type::kFp16, Activation::kRelu, true, 16});
    Context first(linear, 64);
    Context second(linear, 64);
    first.run(40, 1);
    second.run(5, 2);
    REQUIRE(fake::live() > before);
  }
  REQUIRE(fake::live() == before);
}

void weights_are_uploaded_once() {
  auto const linear = built({});
  auto const weights = linear->weights();
  auto const held = fake::live();
  REQUIRE(linear->weights() == weights);
  REQUIRE(fake::live() == held);
}

// What it says on stderr is up to the caller, who chose the library.
void loads() { built({}); }

void loads_dense() { built({Type::kFp16, Activation::kNone, true, 16}); }

std::map<std::string, std::function<void()>> const kChecks = {
    {"every_setting_and_number_of_rows", every_setting_and_number_of_rows},
    {"the_fastest_right_algorithm_is_kept", the_fastest_right_algorithm_is_kept},
    {"a_dense_algorithm_is_kept", a_dense_algorithm_is_kept},
    {"another_gpu_measures_again", another_gpu_measures_again},
    {"contexts_run_at_once", contexts_run_at_once},
    {"a_run_is_captured", a_run_is_captured},
    {"more_numbers_of_rows_than_plans", more_numbers_of_rows_than_plans},
    {"all_is_given_back", all_is_given_back},
    {"weights_are_uploaded_once", weights_are_uploaded_once},
    {"loads", loads},
    {"loads_dense", loads_dense},
};

}  // namespace
}  // namespace sparseflow

int main(int count, char** words) {
  try {
    sparseflow::kChecks.at(count > 1 ? words[1] : "")();
    return 0;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
