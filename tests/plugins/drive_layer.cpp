// Drives a layer as TensorRT does through the plugin, on the CPU libraries in fake/: `drive_layer CHECK`.
//
// Exits with 1 and one line on stderr where a check fails; the sanitizers that it is compiled with say the rest.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "bench.h"
#include "fake/at_once.h"
#include "fake/multiply.h"
#include "linear.h"
#include "log.h"
#include "side_by_side.h"

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

int64_t const kRowsTried[] = {1, 2, 7, 8, 9, 31, 32, 33, 64, 255, 256, 257, 300, 301, 511, 513};

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
          Context context(linear, 513);
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

// A measurement that something disturbed is made again beside what is faster for more rows.
void a_bucket_slower_than_a_larger_one_is_timed_again() {
  setenv("FAKE_SLOW", "768", 1);
  auto const linear = built({}, 1024);
  REQUIRE(linear->algorithm(1024).id == 3);
  REQUIRE(linear->algorithm(768).id == 3);
  REQUIRE(was_logged("M=768: algorithm 0, split K 1, 100.0"));
  REQUIRE(was_logged("M=768: algorithm 3, split K 1, 10.0"));
  REQUIRE(was_logged("timed again beside the algorithm of M=1024"));
  REQUIRE(reloaded(*linear)->algorithm(768).id == 3);
  auto const alike = built({}, 1024);  // another layer of this shape: nothing is measured for it
  REQUIRE(alike->written() == linear->written());
  logged.clear();
  fake::name_gpu("Another");
  auto const elsewhere = reloaded(*linear);
  elsewhere->weights();
  REQUIRE(elsewhere->algorithm(768).id == 3);
}

void slower_choices_are_mended_from_the_most_rows_to_the_fewest() {
  auto const choice = [](int64_t m, int32_t id, float us) { return Choice{m, {id, 1, 0, 0}, 0, us}; };
  std::vector<Choice> choices = {choice(8, 1, 5), choice(16, 2, 9), choice(32, 2, 8), choice(64, 3, 7),
                                 choice(128, 4, 6), choice(256, 5, 10)};
  std::vector<std::pair<int64_t, int64_t>> asked;
  mend(choices, [&](Choice const& one, Choice const& other) {
    asked.emplace_back(one.m, other.m);
    return one.m == 32 ? choice(32, other.algorithm.id, 5.5F) : one;  // the others stay what they are
  });
  REQUIRE((asked == std::vector<std::pair<int64_t, int64_t>>{{64, 128}, {32, 128}, {16, 32}}));
  REQUIRE(choices[2].algorithm.id == 4 && choices[3].algorithm.id == 3 && choices[1].algorithm.id == 2);
}

// Where the weights do not stay in the cache in a network, they do not in a measurement.
void weights_are_timed_out_of_cache() {
  class Seen final : public Product {
   public:
    size_t workspace() const override { return 0; }
    void run(void const* weight, void const*, void*, void*, cudaStream_t stream) const override {
      weights.insert(weight);
      fake::submit(stream, 3, [] {});
    }
    mutable std::set<void const*> weights;
  };
  auto const record = make_record({});
  size_t const size = 1024;
  auto const weight = cuda::allocate(size);
  auto const timed = [&](int cache) {
    fake::set_cache(cache);
    Seen product;
    auto const microseconds = Bench(record.layer, 8, weight.get(), size).time(product, 1);
    REQUIRE(std::abs(microseconds - 3) < 0.01);
    return product.weights.size();
  };
  REQUIRE(timed(0) == 1);
  REQUIRE(timed(1 << 12) == 9);
  REQUIRE(timed(30 << 10) == 61);
  REQUIRE(timed(1 << 20) == 128);  // no more, however small a weight is
}

// One launch in which the GPU was fast by chance does not make an algorithm the fastest.
void finalists_are_compared_by_their_medians() {
  class Wavering final : public Product {
   public:
    explicit Wavering(std::vector<float> times) : times_(std::move(times)) {}
    size_t workspace() const override { return 0; }
    void run(void const*, void const*, void*, void*, cudaStream_t stream) const override {
      fake::submit(stream, 0, [this, stream] { fake::submit(stream, times_[runs_++ / 10 % times_.size()], [] {}); });
    }

   private:
    std::vector<float> times_;
    mutable size_t runs_ = 0;
  };
  auto const record = make_record({});
  size_t const size = 1024;
  auto const weight = cuda::allocate(size);
  fake::set_cache(0);
  Bench bench(record.layer, 8, weight.get(), size);
  Wavering const lucky({9, 9, 9, 1, 9}), steady({8});
  REQUIRE(bench.time(lucky, 5) < 8);  // the best of some
  auto const medians = bench.time_in_turn({&lucky, &steady}, 5);
  REQUIRE(std::abs(medians[0] - 9) < 0.01 && std::abs(medians[1] - 8) < 0.01);
}

// A record that is damaged but well-formed: what it names is not run.
std::shared_ptr<Linear> with_choice(Linear const& linear, Choice const& choice) {
  auto const bytes = linear.written();
  auto record = read(bytes.data(), bytes.size());
  record.choices.all = {choice};
  return std::make_shared<Linear>(std::move(record));
}

void an_algorithm_that_cannot_run_is_replaced_and_said() {
  auto const linear = built({});
  for (auto const& [id, why] : std::map<int32_t, std::string>{
           {40, "ends in an illegal instruction on this GPU"}, {1, "refused by the fake"}, {4, "more workspace"}}) {
    logged.clear();
    Context(with_choice(*linear, {64, {id, 1, 0, 0}, 0, 1}), 64).run(24, 1);
    REQUIRE(was_logged("M=24: cuSPARSELt's algorithm " + std::to_string(id) + " is not used ("));
    REQUIRE(was_logged(why));
    REQUIRE(was_logged("but cuSPARSELt's algorithm 0"));
  }
  auto const bf16 = built({Type::kBf16});  // all of whose algorithms may run: the library decides
  logged.clear();
  Context(with_choice(*bf16, {64, {40, 1, 0, 0}, 0, 1}), 64).run(24, 1);
  REQUIRE(was_logged("refused by the fake") && !was_logged("illegal instruction"));
  logged.clear();
  Context(with_choice(*linear, {64, {3, 1, 0, 0}, 0, 1}), 64).run(24, 1);
  REQUIRE(logged.empty());
}

void a_dense_algorithm_that_cannot_run_is_replaced_and_said() {
  auto const linear = built({Type::kFp16, Activation::kNone, true, 32});
  auto const bytes = linear->written();
  auto record = read(bytes.data(), bytes.size());
  record.choices.dense = {{31, {{2}}, 0, 1}};  // which takes four rows at most
  Context context(std::make_shared<Linear>(std::move(record)), 64);
  logged.clear();
  context.run(4, 1);
  REQUIRE(logged.empty());
  context.run(5, 1);
  REQUIRE(was_logged("M=5: an algorithm of cuBLASLt is not used (cuBLASLt: cublasLtMatmulAlgoCheck failed"));
}

// Threads of which a process may start only so many.
struct FewThreads : std::thread {
  static inline int left = 0;
  static unsigned hardware_concurrency() { return 8; }

  template <typename Work>
  explicit FewThreads(Work&& work) : std::thread(started(std::forward<Work>(work))) {}

  template <typename Work>
  static std::thread started(Work&& work) {
    if (left-- <= 0) {
      throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    }
    return std::thread(std::forward<Work>(work));
  }
};

void work_is_done_with_the_threads_that_can_be_started() {
  for (int const threads : {0, 1, 3, 100}) {
    FewThreads::left = threads;
    std::vector<int> done(40);
    side_by_side<FewThreads>(done.size(), 0, [&](size_t i) { ++done[i]; });
    REQUIRE(done == std::vector<int>(40, 1));
  }
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

// A layer that was written elsewhere, as `change` makes its record say, is measured again, once.
void measures_again_after(std::function<void(Choices&)> const& change) {
  auto const linear = built({Type::kFp16, Activation::kNone, true, 32});
  auto const bytes = linear->written();
  auto record = read(bytes.data(), bytes.size());
  change(record.choices);
  auto const elsewhere = std::make_shared<Linear>(std::move(record));
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

void another_gpu_measures_again() {
  measures_again_after([](Choices&) { fake::name_gpu("Another"); });
}

void another_cusparselt_measures_again() {
  measures_again_after([](Choices& choices) { ++choices.library; });
}

void contexts_run_at_once() {
  auto const linear = built({Type::kFp16, Activation::kRelu, true, 20});
  auto const failures = at_once(4, [&](unsigned seed) {
    Context context(linear, 64);
    std::minstd_rand random(seed + 1);
    for (int i = 0; i < 40; ++i) {
      context.run(1 + static_cast<int64_t>(random() % 64), seed, i % 2 == 0);
    }
  });
  for (auto const& failure : failures) {
    require(failure.empty(), failure.c_str(), 0);
  }
}

// Captures m rows and replays them on other numbers, while plans of other rows come and go.
void capture(Context& context, int64_t m) {
  auto const& layer = context.linear->layer();
  auto const& weight = layer.weight;
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
  for (int i = 0; i < 600; ++i) {
    context.products.prepare(1 + i % m);
  }
  for (uint16_t value : {0x3C00, 0xBC00}) {
    std::fill_n(static_cast<uint16_t*>(x.get()), m * weight.k, value);
    cuda::check(cudaGraphLaunch(replay.get(), context.stream.get()), "launching");
    fake::multiply({weight.n, weight.k, m, CUDA_R_16F, false, layer.bias.empty() ? nullptr : layer.bias.data()},
                   dense.data(), static_cast<uint16_t const*>(x.get()), exact.data());
    REQUIRE(std::equal(exact.begin(), exact.end(), static_cast<uint16_t const*>(y.get())));
  }
}

void a_run_is_captured() {
  auto const linear = built({Type::kFp16, Activation::kNone, true, 8});
  for (int64_t const m : {3, 9, 64, 301}) {
    Context context(linear, m);
    capture(context, m);
  }
}

// A context that has met so many numbers of rows that new ones are made of few.
Context with_many_sizes(std::shared_ptr<Linear> const& linear) {
  Context context(linear, 2000);
  for (int64_t m = 8; m <= 512; m += 8) {
    context.products.prepare(m);
  }
  return context;
}

void a_split_run_copies_nothing() {
  auto const linear = built({}, 2000);
  auto context = with_many_sizes(linear);
  auto const before = fake::live();
  for (int64_t const m : {1001, 1003, 1007, 1000, 1280, 1032}) {  // 768, and the last 240; 1024, and the last 8
    context.run(m, 1);
    fake::copies();
    context.run(m, 2);
    REQUIRE(fake::copies() == 0);
  }
  fake::copies();
  context.run(505, 3);  // whose 512 have a plan of their own
  REQUIRE(fake::copies() == 2);
  REQUIRE(fake::live() - before == 3);  // 768, 1024 and 1280
}

void a_split_run_is_captured() {
  auto const linear = built({}, 2000);
  for (int64_t const m : {1000, 1003, 1280, 1999}) {
    auto context = with_many_sizes(linear);
    capture(context, m);
  }
}

void contexts_with_many_sizes_run_at_once() {
  auto const linear = built({Type::kFp16, Activation::kRelu, true, 20}, 1100);
  auto const failures = at_once(3, [&](unsigned seed) {
    auto context = with_many_sizes(linear);
    std::minstd_rand random(seed + 1);
    for (int i = 0; i < 12; ++i) {
      context.run(500 + static_cast<int64_t>(random() % 600), seed, i % 2 == 0);
    }
  });
  for (auto const& failure : failures) {
    require(failure.empty(), failure.c_str(), 0);
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
    {"a_bucket_slower_than_a_larger_one_is_timed_again", a_bucket_slower_than_a_larger_one_is_timed_again},
    {"slower_choices_are_mended_from_the_most_rows_to_the_fewest",
     slower_choices_are_mended_from_the_most_rows_to_the_fewest},
    {"weights_are_timed_out_of_cache", weights_are_timed_out_of_cache},
    {"finalists_are_compared_by_their_medians", finalists_are_compared_by_their_medians},
    {"an_algorithm_that_cannot_run_is_replaced_and_said", an_algorithm_that_cannot_run_is_replaced_and_said},
    {"a_dense_algorithm_that_cannot_run_is_replaced_and_said", a_dense_algorithm_that_cannot_run_is_replaced_and_said},
    {"work_is_done_with_the_threads_that_can_be_started", work_is_done_with_the_threads_that_can_be_started},
    {"a_dense_algorithm_is_kept", a_dense_algorithm_is_kept},
    {"another_gpu_measures_again", another_gpu_measures_again},
    {"another_cusparselt_measures_again", another_cusparselt_measures_again},
    {"contexts_run_at_once", contexts_run_at_once},
    {"a_run_is_captured", a_run_is_captured},
    {"a_split_run_copies_nothing", a_split_run_copies_nothing},
    {"a_split_run_is_captured", a_split_run_is_captured},
    {"contexts_with_many_sizes_run_at_once", contexts_with_many_sizes_run_at_once},
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
