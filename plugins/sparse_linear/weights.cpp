#include "weights.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "dense.h"
#include "side_by_side.h"

namespace sparseflow {
namespace {

constexpr int64_t kRowsAtOnce = 512;  // expanded on the host: a dense copy of the whole is not needed there

cuda::Memory upload_dense(Packed const& packed, cudaStream_t stream) {
  auto const row = static_cast<size_t>(packed.k) * sizeof(uint16_t);
  auto dense = cuda::allocate(row * static_cast<size_t>(packed.n));
  std::vector<uint16_t> rows(static_cast<size_t>(std::min(kRowsAtOnce, packed.n) * packed.k));
  for (int64_t first = 0; first < packed.n; first += kRowsAtOnce) {
    auto const count = std::min(kRowsAtOnce, packed.n - first);
    expand(packed, first, count, rows.data());
    auto* const to = static_cast<char*>(dense.get()) + row * static_cast<size_t>(first);
    cuda::check(cudaMemcpyAsync(to, rows.data(), row * static_cast<size_t>(count), cudaMemcpyHostToDevice, stream),
                "copying weights to the GPU");
    cuda::check(cudaStreamSynchronize(stream), "copying weights to the GPU");  // before `rows` is written again
  }
  return dense;
}

// The plans that somebody holds. Plans keep no weights; a bias they do, so its address is part of what tells them apart.
class Plans {
 public:
  std::shared_ptr<SparseProduct const> find_or_make(std::shared_ptr<lt::Session> const& session, Shape const& shape,
                                                    int64_t m, Algorithm const& algorithm) {
    Key const key{session->device(), shape.n, shape.k, shape.type, shape.activation, shape.bias, m,
                  algorithm.id, algorithm.split_k, algorithm.split_k_mode, algorithm.split_k_buffers};
    {
      std::lock_guard<std::mutex> const lock(mutex_);
      if (auto const known = plans_.find(key); known != plans_.end()) {
        if (auto found = known->second.lock()) {
          return found;
        }
      }
    }
    // Not under the lock: plans are made side by side, which cuSPARSELt 0.9.1 bears.
    auto const made = std::make_shared<SparseProduct const>(session, shape, m, algorithm);
    std::lock_guard<std::mutex> const lock(mutex_);
    for (auto known = plans_.begin(); known != plans_.end();) {
      known = known->second.expired() ? plans_.erase(known) : std::next(known);
    }
    plans_[key] = made;
    return made;
  }

 private:
  using Key = std::tuple<int, int64_t, int64_t, Type, Activation, void const*, int64_t, int32_t, int32_t, int32_t,
                         int32_t>;

  std::mutex mutex_;
  std::map<Key, std::weak_ptr<SparseProduct const>> plans_;
};

Plans& plans() {
  static Plans all;
  return all;
}

// On an H200 the FP16 algorithms from 36 on end in an illegal instruction: seen with 0.8.0 and 0.9.1, which say that
// they have 52.
int32_t safe_algorithms_of(Type type, int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  auto const unsafe = type == Type::kFp16 && properties.major == 9 && properties.minor == 0;
  return unsafe ? 36 : std::numeric_limits<int32_t>::max();
}

}  // namespace

Weights::Weights(Layer const& layer)
    : session_(lt::session()),
      blas_(layer.dense_below_m > 0 ? blas::session() : nullptr),
      shape_{layer.weight.n, layer.weight.k, layer.type, layer.activation, nullptr} {
  safe_algorithms_ = safe_algorithms_of(layer.type, session_->device());
  auto const stream = cuda::new_stream();
  auto const& api = session_->api();
  auto dense = upload_dense(layer.weight, stream.get());
  WeightMatrix const matrix(*session_, shape_);
  size_t buffer_size = 0;
  session_->check(api.compressed_size(session_->handle(), matrix.get(), &compressed_size_, &buffer_size),
                  "cusparseLtSpMMACompressedSize2");
  compressed_ = cuda::allocate(compressed_size_);
  auto const buffer = cuda::allocate(buffer_size);
  session_->check(api.compress(session_->handle(), matrix.get(), 1, lt::kNonTranspose, dense.get(), compressed_.get(),
                               buffer.get(), stream.get()),
                  "cusparseLtSpMMACompress2");
  if (!layer.bias.empty()) {
    auto const bytes = layer.bias.size() * sizeof(uint16_t);
    bias_ = cuda::allocate(bytes);
    cuda::check(cudaMemcpyAsync(bias_.get(), layer.bias.data(), bytes, cudaMemcpyHostToDevice, stream.get()),
                "copying a bias to the GPU");
    shape_.bias = bias_.get();
  }
  cuda::check(cudaStreamSynchronize(stream.get()), "compressing weights");
  if (blas_) {
    dense_ = std::move(dense);
  }
}

std::shared_ptr<SparseProduct const> Weights::plan(int64_t m, Algorithm const& algorithm) const {
  if (algorithm.id >= safe_algorithms_) {
    throw LibraryError(in_words(algorithm) + " ends in an illegal instruction on this GPU");
  }
  return plans().find_or_make(session_, shape_, m, algorithm);
}

std::shared_ptr<Product const> Weights::plan(int64_t m, DenseAlgorithm const& algorithm) const {
  return std::make_shared<DenseProduct>(blas_, shape_, m, algorithm);
}

template <typename AlgorithmT>
std::vector<std::shared_ptr<Product const>> Weights::plan_each(int64_t m, std::vector<AlgorithmT> const& algorithms,
                                                               std::string& refused) const {
  std::vector<std::shared_ptr<Product const>> made(algorithms.size());
  std::vector<std::string> errors(algorithms.size());
  side_by_side(algorithms.size(), session_->device(), [&](size_t i) {
    try {
      made[i] = plan(m, algorithms[i]);
    } catch (std::exception const& error) {  // some do not take some shapes
      errors[i] = error.what();
    }
  });
  for (auto const& error : errors) {
    refused = error.empty() ? refused : error;
  }
  return made;
}

std::vector<std::shared_ptr<Product const>> Weights::plan_all(int64_t m, std::vector<Algorithm> const& algorithms,
                                                              std::string& refused) const {
  return plan_each(m, algorithms, refused);
}

std::vector<std::shared_ptr<Product const>> Weights::plan_all(int64_t m, std::vector<DenseAlgorithm> const& algorithms,
                                                              std::string& refused) const {
  return plan_each(m, algorithms, refused);
}

std::vector<DenseAlgorithm> Weights::dense_algorithms(int64_t m, int most) const {
  return DenseProduct(blas_, shape_, m, DenseAlgorithm{}).algorithms(most);
}

}  // namespace sparseflow
