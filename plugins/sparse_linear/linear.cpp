#include "linear.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "log.h"
#include "search.h"

namespace sparseflow {
namespace {

constexpr size_t kMostPlans = 1024;  // of one context; in FP16 one takes 23 MB of the host, with its kernel
constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

Product const& keep(std::map<int64_t, std::shared_ptr<Product const>>& products, int64_t m,
                    std::shared_ptr<Product const> made) {
  if (made->workspace() > kMostWorkspace) {
    throw LibraryError("a product of " + std::to_string(m) +
                       " rows takes more workspace than the engine has set aside");
  }
  if (products.size() >= kMostPlans) {
    products.erase(std::prev(products.end()));  // few rows come most often
  }
  return *products.emplace(m, std::move(made)).first->second;
}

std::string in_words(std::string const& gpu, int32_t library, int32_t dense_library) {
  auto const dense = dense_library == 0 ? "" : " and cuBLASLt " + std::to_string(dense_library);
  return gpu + " with cuSPARSELt " + lt::in_words(library) + dense;
}

void log_choice(Choice const& choice, std::string const& why = "") {
  log(Severity::kVerbose, "M=" + std::to_string(choice.m) + ": algorithm " + std::to_string(choice.algorithm.id) +
                              ", split K " + std::to_string(choice.algorithm.split_k) + ", " +
                              std::to_string(choice.microseconds) + " us" + why);
}

void log_choice(DenseChoice const& choice, std::string const& why = "") {
  log(Severity::kVerbose,
      "M=" + std::to_string(choice.m) + ": dense, " + std::to_string(choice.microseconds) + " us" + why);
}

// More rows take longer: where they were not seen to, the measurement of the fewer is doubted.
template <typename ChoiceT>
void mend_choices(Layer const& layer, Weights const& weights, std::vector<ChoiceT>& choices) {
  mend(choices, [&](ChoiceT const& choice, ChoiceT const& other) {
    auto const better = faster_of(layer, weights, choice.m, choice.algorithm, other.algorithm);
    log_choice(better, ", timed again beside the algorithm of M=" + std::to_string(other.m));
    return better;
  });
}

// A plan by the algorithm that was chosen or, where the library does not take it, by the library's first.
template <typename AlgorithmT>
std::shared_ptr<Product const> plan(Weights const& weights, int64_t m, AlgorithmT const& chosen) {
  AlgorithmT const first{};
  if (!is_same(chosen, first)) {
    std::string why = "it takes more workspace than the engine has set aside";
    try {
      std::shared_ptr<Product const> product = weights.plan(m, chosen);
      if (product->workspace() <= kMostWorkspace) {
        return product;
      }
    } catch (LibraryError const& error) {  // one that takes the measured number of rows and not this one, or damage
      why = error.what();
    }
    log(Severity::kWarning, "M=" + std::to_string(m) + ": " + in_words(chosen) + " is not used (" + why + ") but " +
                                in_words(first));
  }
  return weights.plan(m, first);
}

size_t bytes_of(int64_t rows, int64_t columns) { return static_cast<size_t>(rows * columns) * sizeof(uint16_t); }

}  // namespace

Linear::Linear(Record record) : layer_(std::move(record.layer)), choices_(std::move(record.choices)) {}

Linear::Linear(std::string failed) : failed_(std::move(failed)) {}

std::shared_ptr<Weights> Linear::weights() {
  auto const device = cuda::current_device();
  std::lock_guard<std::mutex> const lock(mutex_);
  auto weights = weights_[device].lock();
  if (!weights) {
    weights = std::make_shared<Weights>(layer_);
    measure_again(*weights);
    weights_[device] = weights;
  }
  return weights;
}

void Linear::measure_again(Weights const& weights) {
  auto const gpu = gpu_name(weights.session().device());
  auto const library = weights.session().version();
  auto const dense_library = weights.dense_version();
  if (choices_.gpu == gpu && choices_.library == library && choices_.dense_library == dense_library) {
    return;
  }
  if (!choices_.all.empty() || !choices_.dense.empty()) {
    log(Severity::kWarning, "algorithms were measured on " + in_words(choices_.gpu, choices_.library,
                                                                     choices_.dense_library) +
                                ", and this is " + in_words(gpu, library, dense_library) + ": measuring again");
  }
  for (auto& choice : choices_.all) {
    choice = fastest(layer_, weights, choice.m);
  }
  for (auto& choice : choices_.dense) {
    choice = fastest_dense(layer_, weights, choice.m);
  }
  mend_choices(layer_, weights, choices_.all);
  mend_choices(layer_, weights, choices_.dense);
  choices_.gpu = gpu;
  choices_.library = library;
  choices_.dense_library = dense_library;
}

void Linear::measure(Weights const& weights, int64_t min_m, int64_t max_m) {
  std::lock_guard<std::mutex> const lock(mutex_);
  try {
    measure_rows(weights, min_m, max_m);
  } catch (std::exception const& error) {
    failed_ = error.what();
    throw;
  }
}

void Linear::measure_rows(Weights const& weights, int64_t min_m, int64_t max_m) {
  auto const below = layer_.dense_below_m;
  if (min_m < below) {
    for (auto const m : dense_rows_to_measure(min_m, std::min(max_m, below - 1))) {
      if (!is_known(choices_.dense, m)) {
        auto const choice = fastest_dense(layer_, weights, m);
        insert(choices_.dense, choice);
        log_choice(choice);
      }
    }
    mend_choices(layer_, weights, choices_.dense);
  }
  if (max_m < below) {
    return;
  }
  for (auto const m : rows_to_measure(std::max(min_m, below), max_m)) {
    if (!is_known(choices_.all, m)) {
      auto const choice = fastest(layer_, weights, m);
      insert(choices_.all, choice);
      log_choice(choice);
    }
  }
  mend_choices(layer_, weights, choices_.all);
}

bool Linear::is_measured() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return !choices_.all.empty() || !choices_.dense.empty();
}

void Linear::check_measured() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  if (!failed_.empty()) {
    throw LibraryError(failed_);
  }
}

Algorithm Linear::algorithm(int64_t m) const {
  std::lock_guard<std::mutex> const lock(mutex_);
  auto const* choice = choice_for(choices_.all, m);
  return choice == nullptr ? Algorithm{} : choice->algorithm;
}

DenseAlgorithm Linear::dense_algorithm(int64_t m) const {
  std::lock_guard<std::mutex> const lock(mutex_);
  auto const* choice = choice_for(choices_.dense, m);
  return choice == nullptr ? DenseAlgorithm{} : choice->algorithm;
}

bool Linear::holds(Record const& record) const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return failed_.empty() && is_same(layer_, choices_, record);
}

size_t Linear::written_size() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return sparseflow::written_size(layer_, choices_);
}

std::vector<uint8_t> Linear::written() const {
  std::lock_guard<std::mutex> const lock(mutex_);
  return write(layer_, choices_);
}

std::shared_ptr<Linear> shared_linear(Record record) {
  static std::mutex mutex;
  static std::vector<std::pair<int, std::weak_ptr<Linear>>> all;  // by the GPU that they were read for
  auto const device = cuda::current_device();
  std::vector<std::shared_ptr<Linear>> here;
  {
    std::lock_guard<std::mutex> const lock(mutex);
    all.erase(std::remove_if(all.begin(), all.end(), [](auto const& known) { return known.second.expired(); }),
              all.end());
    for (auto const& [known_device, known] : all) {
      if (auto linear = known.lock(); linear && known_device == device) {
        here.push_back(std::move(linear));
      }
    }
  }
  // Not under the lock: one that is being measured is waited for.
  for (auto const& linear : here) {
    if (linear->holds(record)) {
      return linear;
    }
  }
  auto made = std::make_shared<Linear>(std::move(record));
  std::lock_guard<std::mutex> const lock(mutex);
  all.emplace_back(device, made);
  return made;
}

Products::Products(std::shared_ptr<Linear> linear, std::shared_ptr<Weights> weights)
    : linear_(std::move(linear)), weights_(std::move(weights)) {}

Product const& Products::sparse(int64_t m) {
  if (auto const found = sparse_.find(m); found != sparse_.end()) {
    return *found->second;
  }
  return keep(sparse_, m, plan(*weights_, m, linear_->algorithm(m)));
}

Product const& Products::dense(int64_t m) {
  if (auto const found = dense_.find(m); found != dense_.end()) {
    return *found->second;
  }
  return keep(dense_, m, plan(*weights_, m, linear_->dense_algorithm(m)));
}

// The second product of a split costs a second reading of the weights.
Split Products::parts_of(int64_t m) const {
  auto const exact = split(m);
  auto const is_planned = sparse_.count(exact.copied != 0 ? round_up(m, kRows) : exact.whole) != 0;
  return sparse_.size() < kMostExact || is_planned ? exact : split_shared(m);
}

void Products::prepare(int64_t m) {
  if (is_dense(m)) {
    dense(m);
    return;
  }
  auto const parts = parts_of(m);
  for (auto const rows : {parts.whole, parts.tail, round_up(parts.copied, kRows)}) {
    if (rows != 0) {
      sparse(rows);
    }
  }
}

size_t Products::workspace(Packed const& weight, int64_t m) {
  auto const rows = most_copied(m);
  return kMostWorkspace + aligned(bytes_of(rows, weight.k)) + aligned(bytes_of(rows, weight.n));
}

void Products::run(int64_t m, void const* x, void* y, void* workspace, cudaStream_t stream) {
  auto const& weight = linear_->layer().weight;
  if (is_dense(m)) {
    if (m > 0) {
      dense(m).run(weights_->dense(), x, y, workspace, stream);
    }
    return;
  }
  auto const parts = parts_of(m);
  if (parts.copied != 0) {
    run_copied(m, x, y, workspace, stream);
    return;
  }
  if (parts.whole != 0) {
    sparse(parts.whole).run(weights_->compressed(), x, y, workspace, stream);
  }
  if (parts.tail != 0) {
    auto const first = m - parts.tail;
    sparse(parts.tail).run(weights_->compressed(), static_cast<char const*>(x) + bytes_of(first, weight.k),
                           static_cast<char*>(y) + bytes_of(first, weight.n), workspace, stream);
  }
}

void Products::run_copied(int64_t m, void const* x, void* y, void* workspace, cudaStream_t stream) {
  auto const& weight = linear_->layer().weight;
  auto const rows = round_up(m, kRows);
  auto const x_bytes = bytes_of(m, weight.k);
  auto* const x_copy = static_cast<char*>(workspace) + kMostWorkspace;
  auto* const y_copy = x_copy + aligned(bytes_of(rows, weight.k));
  cuda::check(cudaMemcpyAsync(x_copy, x, x_bytes, cudaMemcpyDeviceToDevice, stream), "copying rows");
  cuda::check(cudaMemsetAsync(x_copy + x_bytes, 0, bytes_of(rows, weight.k) - x_bytes, stream), "padding rows");
  sparse(rows).run(weights_->compressed(), x_copy, y_copy, workspace, stream);
  cuda::check(cudaMemcpyAsync(y, y_copy, bytes_of(m, weight.n), cudaMemcpyDeviceToDevice, stream), "copying rows");
}

}  // namespace sparseflow
