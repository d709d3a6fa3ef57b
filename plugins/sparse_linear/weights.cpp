#include "weights.h"

#include <algorithm>
#include <vector>

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

}  // namespace

Weights::Weights(Layer const& layer) : session_(lt::session()) {
  auto const stream = cuda::new_stream();
  auto const& weight = layer.weight;
  auto const& api = session_->api();
  auto const dense = upload_dense(weight, stream.get());
  WeightMatrix const matrix(*session_, weight.n, weight.k, layer.type);
  size_t size = 0;
  size_t buffer_size = 0;
  session_->check(api.compressed_size(session_->handle(), matrix.get(), &size, &buffer_size),
                  "cusparseLtSpMMACompressedSize2");
  compressed_ = cuda::allocate(size);
  auto const buffer = cuda::allocate(buffer_size);
  session_->check(api.compress(session_->handle(), matrix.get(), 1, lt::kNonTranspose, dense.get(), compressed_.get(),
                               buffer.get(), stream.get()),
                  "cusparseLtSpMMACompress2");
  if (!layer.bias.empty()) {
    auto const bytes = layer.bias.size() * sizeof(uint16_t);
    bias_ = cuda::allocate(bytes);
    cuda::check(cudaMemcpyAsync(bias_.get(), layer.bias.data(), bytes, cudaMemcpyHostToDevice, stream.get()),
                "copying a bias to the GPU");
  }
  cuda::check(cudaStreamSynchronize(stream.get()), "compressing weights");
  view_ = {weight.n, weight.k, layer.type, layer.activation, compressed_.get(), bias_.get()};
}

std::unique_ptr<Product> Weights::plan(int64_t m, Algorithm const& algorithm) const {
  static std::mutex mutex;
  std::lock_guard<std::mutex> const lock(mutex);
  return std::make_unique<Product>(session_, view_, m, algorithm);
}

}  // namespace sparseflow
