// Times products on a GPU, and holds their results against the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "device.h"
#include "product.h"
#include "record.h"

namespace sparseflow {

// The input, output, workspace, stream and copies of the weights of one measurement. Throws cuda::Error.
class Bench {
 public:
  // `weight` are `size` bytes on the GPU, as the products to be timed read them.
  Bench(Layer const& layer, int64_t m, void const* weight, size_t size);

  // Microseconds of one product, the best of some launches of a graph of several.
  float time(Product const& product, int launches);

  // Microseconds of one of each, the median of so many launches of such graphs, in turn and with no pause: a GPU that
  // meets its power limit slows down, which is to meet all alike.
  std::vector<float> time_in_turn(std::vector<Product const*> const& products, int rounds);

  // Runs one and waits for it.
  void run(Product const& product);

  // Whether the last product that ran computed what it should, by some of its numbers.
  bool is_right();

  // Whether CUDA still works, after an error of a product: some leave a process with no GPU.
  bool is_alive();

 private:
  cuda::GraphExec capture(Product const& product);
  float time(cuda::GraphExec const& graph);
  void run(Product const& product, int turn);

  Layer const& layer_;
  int64_t m_;
  cuda::Stream stream_;
  cuda::Event begin_;
  cuda::Event end_;
  cuda::Memory x_;
  cuda::Memory y_;
  cuda::Memory workspace_;
  cuda::Memory copies_;
  std::vector<void const*> weights_;
  int in_graph_;  // products in a row
};

}  // namespace sparseflow
