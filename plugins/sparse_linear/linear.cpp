#include "linear.h"

#include <algorithm>
#include <utility>

#include "log.h"
#include "search.h"

namespace sparseflow {
namespace {

constexpr size_t kMostPlans = 1024;  // of one context: a few KiB of host memory each
constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

size_t bytes_of(int64_t rows, int64_t columns) { return static_cast<size_t>(rows * columns) * sizeof(uint16_t); }

}  // namespace

Linear::Linear(Record record) : layer_(std::move(record.layer)), choices_(std::move(record.choices)) {}

std::shared_ptr<Weights> Linear::weights() {
  auto const device = cuda::current_device();
  std::lock_guard<std::mutex> const lock(mutex_);
  auto weights = weights_[device].lock();
  if (!weights) {
    weights = std::make_shared<Weights>(layer_);
    weights_[device] = weights;
    measure_again(*weights);
  }
  return weights;
}

void Linear::measure_again(Weights const& weights) {
  auto const gpu = gpu_name(weights.session()->device());
  auto const library = weights.session()->version();
  if (choices_.gpu == gpu && choices_.library == library) {
    return;
  }
  if (!choices_.all.empty()) {
    log(Severity::kWarning, "algorithms were measured on " + choices_.gpu + " with cuSPARSELt " +
                                std::to_string(choices_.library) + ", and this is " + gpu + " with " +
                                std::to_string(library) + ": measuring again");
  }
  for (auto& choice : choices_.all) {
    choice = fastest(weights, choice.m);
  }
  choices_.gpu = gpu;
  choices_.library = library;
}

void Linear::measure(Weights const& weights, int64_t min_m, int64_t max_m) {
  std::lock_guard<std::mutex> const lock(mutex_);
  for (auto const m : rows_to_measure(min_m, max_m)) {
    auto const* known = choice_for(choices_.all, m);
    if (known == nullptr || known->m != m) {
      auto const choice = fastest(weights, m);
      insert(choices_.all, choice);
      log(Severity::kVerbose, "M=" + std::to_string(m) + ": algorithm " + std::to_string(choice.algorithm.id) +
                                  ", split K " + std::to_string(choice.algorithm.split_k) + ", " +
                                  std::to_string(choice.microseconds) + " us");
    }
  }
}

bool Linear::is_measured() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return !choices_.all.empty();
}

Algorithm Linear::algorithm(int64_t m) const {
  std::lock_guard<std::mutex> const lock(mutex_);
  auto const* choice = choice_for(choices_.all, m);
  return choice == nullptr ? Algorithm{} : choice->algorithm;
}

size_t Linear::written_size() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return sparseflow::written_size(layer_, choices_);
}

std::vector<uint8_t> Linear::written() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return write(layer_, choices_);
}

Products::Products(std::shared_ptr<Linear> linear, std::shared_ptr<Weights> weights)
    : linear_(std::move(linear)), weights_(std::move(weights)) {}

Product const& Products::product(int64_t m) {
  if (auto const found = products_.find(m); found != products_.end()) {
    return *found->second;
  }
  std::unique_ptr<Product> product;
  try {
    product = weights_->plan(m, linear_->algorithm(m));
  } catch (lt::Error const&) {  // an algorithm that takes the measured number of rows and not this one
  }
  if (!product || product->workspace() > kMostWorkspace) {
    product = weights_->plan(m, Algorithm{});
  }
  if (product->workspace() > kMostWorkspace) {
    throw lt::Error("a product of " + std::to_string(m) + " rows takes more workspace than the engine has set aside");
  }
  if (products_.size() >= kMostPlans) {
    products_.erase(products_.begin());
  }
  return *products_.emplace(m, std::move(product)).first->second;
}

void Products::prepare(int64_t m) {
  auto const parts = split(m);
  if (parts.whole != 0) {
    product(parts.whole);
  }
  if (parts.tail != 0) {
    product(round_up(parts.tail, kRows));
  }
}

size_t Products::workspace(Packed const& weight, int64_t m) {
  auto const rows = most_copied(m);
  return kMostWorkspace + aligned(bytes_of(rows, weight.k)) + aligned(bytes_of(rows, weight.n));
}

void Products::run(int64_t m, void const* x, void* y, void* workspace, cudaStream_t stream) {
  auto const& weight = linear_->layer().weight;
  auto const parts = split(m);
  if (parts.whole != 0) {
    product(parts.whole).run(x, y, workspace, stream);
  }
  if (parts.tail == 0) {
    return;
  }
  auto const rows = round_up(parts.tail, kRows);
  auto const x_bytes = bytes_of(parts.tail, weight.k);
  auto* const x_copy = static_cast<char*>(workspace) + kMostWorkspace;
  auto* const y_copy = x_copy + aligned(bytes_of(rows, weight.k));
  cuda::check(cudaMemcpyAsync(x_copy, static_cast<char const*>(x) + bytes_of(parts.whole, weight.k), x_bytes,
                              cudaMemcpyDeviceToDevice, stream),
              "copying rows");
  cuda::check(cudaMemsetAsync(x_copy + x_bytes, 0, bytes_of(rows, weight.k) - x_bytes, stream), "padding rows");
  product(rows).run(x_copy, y_copy, workspace, stream);
  cuda::check(cudaMemcpyAsync(static_cast<char*>(y) + bytes_of(parts.whole, weight.n), y_copy,
                              bytes_of(parts.tail, weight.n), cudaMemcpyDeviceToDevice, stream),
              "copying rows");
}

}  // namespace sparseflow
