#include "weights.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "dense.h"
#include "sparse.h"

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

std::mutex& planning() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

Weights::Weights(Layer const& layer)
    : session_(lt::session()),
      blas_(layer.dense_below_m > 0 ? blas::session() : nullptr),
      shape_{layer.weight.n, layer.weight.k, layer.type, layer.activation, nullptr} {
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

std::unique_ptr<Product> Weights::plan(int64_t m, Algorithm const& algorithm) const {
  std::lock_guard<std::mutex> const lock(planning());
  return std::make_unique<SparseProduct>(session_, shape_, m, algorithm);
}

std::unique_ptr<Product> Weights::plan(int64_t m, DenseAlgorithm const& algorithm) const {
  return std::make_unique<DenseProduct>(blas_, shape_, m, algorithm);
}

int32_t Weights::algorithms(int64_t m) const {
  std::lock_guard<std::mutex> const lock(planning());
  return SparseProduct(session_, shape_, m, Algorithm{}).algorithms();
}

std::vector<DenseAlgorithm> Weights::dense_algorithms(int64_t m, int most) const {
  return DenseProduct(blas_, shape_, m, DenseAlgorithm{}).algorithms(most);
}

}  // namespace sparseflow
