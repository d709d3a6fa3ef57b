// One layer, shared by the plugin's clones: what is stored, what is measured, and its weights on the GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "record.h"
#include "weights.h"

namespace sparseflow {

// Safe to use from several threads.
class Linear {
 public:
  explicit Linear(Record record);

  // One that was stored and cannot be read: `check_measured` says why, and nothing else may be asked of it.
  explicit Linear(std::string failed);

  Layer const& layer() const { return layer_; }

  // This GPU's weights, uploaded where nobody holds them. Choices of another GPU or library are measured anew.
  std::shared_ptr<Weights> weights();

  // Measures what products of min_m to max_m rows need and is not known yet.
  void measure(Weights const& weights, int64_t min_m, int64_t max_m);

  bool is_measured() const;

  // Throws LibraryError where `measure` has failed before (TensorRT does not hear of it where it has that done), or
  // reading.
  void check_measured() const;

  // The algorithm for m rows; the library's first where nothing is known.
  Algorithm algorithm(int64_t m) const;
  DenseAlgorithm dense_algorithm(int64_t m) const;

  // Whether it is this record, to the bit.
  bool holds(Record const& record) const;

  size_t written_size() const;
  std::vector<uint8_t> written() const;

 private:
  void measure_again(Weights const& weights);
  void measure_rows(Weights const& weights, int64_t min_m, int64_t max_m);

  Layer const layer_;
  mutable std::mutex mutex_;
  Choices choices_;
  std::string failed_;
  std::map<int, std::weak_ptr<Weights>> weights_;  // by device
};

// A stored layer for this thread's GPU: the living one that holds the same, where there is one. TensorRT writes a
// layer once for each profile, whose weights would else be in the GPU's memory as often.
std::shared_ptr<Linear> shared_linear(Record record);

// The products of one execution context, planned when a number of rows is first seen. Not for several threads.
class Products {
 public:
  Products(std::shared_ptr<Linear> linear, std::shared_ptr<Weights> weights);

  // Plans what m rows take, so that `run` plans nothing.
  void prepare(int64_t m);

  // Bytes of workspace for up to m rows.
  static size_t workspace(Packed const& weight, int64_t m);

  // y[m, n] = activation(x[m, k] · Wᵀ + bias): at most two products on the stream, or one and three copies.
  void run(int64_t m, void const* x, void* y, void* workspace, cudaStream_t stream);

 private:
  bool is_dense(int64_t m) const { return m < linear_->layer().dense_below_m; }
  Split parts_of(int64_t m) const;
  void run_copied(int64_t m, void const* x, void* y, void* workspace, cudaStream_t stream);
  Product const& sparse(int64_t m);
  Product const& dense(int64_t m);

  std::shared_ptr<Linear> linear_;
  std::shared_ptr<Weights> weights_;
  std::map<int64_t, std::shared_ptr<Product const>> sparse_;
  std::map<int64_t, std::shared_ptr<Product const>> dense_;
};

}  // namespace sparseflow
