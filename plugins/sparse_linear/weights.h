// A layer's weights on a GPU, as cuSPARSELt reads them.
#pragma once

#include <memory>
#include <mutex>

#include "cusparselt.h"
#include "device.h"
#include "product.h"
#include "record.h"

namespace sparseflow {

// Compressed once; read by every context of an engine at once.
class Weights {
 public:
  // Uploads and compresses, and waits for it. Throws cuda::Error and lt::Error.
  explicit Weights(Layer const& layer);

  std::shared_ptr<lt::Session> const& session() const { return session_; }
  WeightView const& view() const { return view_; }

  // Plans a product; one thread at a time, for the library does not say that several may.
  std::unique_ptr<Product> plan(int64_t m, Algorithm const& algorithm) const;

 private:
  std::shared_ptr<lt::Session> session_;
  cuda::Memory compressed_;
  cuda::Memory bias_;
  WeightView view_;
};

}  // namespace sparseflow
