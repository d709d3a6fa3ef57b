// A layer's weights on a GPU, as the libraries read them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cublaslt.h"
#include "cusparselt.h"
#include "device.h"
#include "product.h"
#include "record.h"
#include "sparse.h"

namespace sparseflow {

// Made once; read by every context of an engine at once.
class Weights {
 public:
  // Uploads and compresses, and waits for it. Throws cuda::Error and LibraryError.
  explicit Weights(Layer const& layer);

  Shape const& shape() const { return shape_; }
  void const* compressed() const { return compressed_.get(); }
  size_t compressed_size() const { return compressed_size_; }
  void const* dense() const { return dense_.get(); }  // W[n, k]; null where no number of rows is computed dense
  lt::Session const& session() const { return *session_; }
  int dense_version() const { return blas_ ? blas_->version() : 0; }  // cuBLASLt's; 0 where it is not used

  // How many of cuSPARSELt's algorithms, from 0 on, may run at all: the others end a process.
  int32_t safe_algorithms() const { return safe_algorithms_; }

  // Plans a product; throws LibraryError where the library does not take it, and for an algorithm that is not safe.
  // Layers of one shape, and contexts, share a plan of cuSPARSELt's that one of them has: for FP16 the
  // library compiles its kernel, a fifth of a second of one core.
  std::shared_ptr<SparseProduct const> plan(int64_t m, Algorithm const& algorithm) const;
  std::shared_ptr<Product const> plan(int64_t m, DenseAlgorithm const& algorithm) const;

  // Plans by several algorithms, side by side on all cores; null where the library does not take one, which `refused`
  // says why.
  std::vector<std::shared_ptr<Product const>> plan_all(int64_t m, std::vector<Algorithm> const& algorithms,
                                                       std::string& refused) const;
  std::vector<std::shared_ptr<Product const>> plan_all(int64_t m, std::vector<DenseAlgorithm> const& algorithms,
                                                       std::string& refused) const;

  // What may be tried for m rows, as cuBLASLt's heuristic says; a plan of cuSPARSELt's tells its own.
  std::vector<DenseAlgorithm> dense_algorithms(int64_t m, int most) const;

 private:
  template <typename AlgorithmT>
  std::vector<std::shared_ptr<Product const>> plan_each(int64_t m, std::vector<AlgorithmT> const& algorithms,
                                                        std::string& refused) const;

  std::shared_ptr<lt::Session> session_;
  std::shared_ptr<blas::Session> blas_;
  cuda::Memory compressed_;
  size_t compressed_size_ = 0;
  int32_t safe_algorithms_ = 0;
  cuda::Memory dense_;
  cuda::Memory bias_;
  Shape shape_;
};

}  // namespace sparseflow
