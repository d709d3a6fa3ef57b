// All that an engine keeps of one layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "choices.h"
#include "packed.h"

namespace sparseflow {

enum class Type : uint8_t { kFp16 = 0, kBf16 = 1 };
enum class Activation : uint8_t { kNone = 0, kRelu = 1 };

// y = activation(x · Wᵀ + bias)
struct Layer {
  Type type = Type::kFp16;
  Activation activation = Activation::kNone;
  Packed weight;
  std::vector<uint16_t> bias;  // [n], of the same type; empty where there is none
  int64_t dense_below_m = 0;   // fewer rows than these are computed dense
};

struct Record {
  Layer layer;
  Choices choices;
};

// Throws FormatError where the parts do not fit each other.
void check(Layer const& layer);

// Bytes of `write`, known without copying the weight.
size_t written_size(Layer const& layer, Choices const& choices);
std::vector<uint8_t> write(Layer const& layer, Choices const& choices);

// Whether `write` makes the same bytes of both.
bool is_same(Layer const& layer, Choices const& choices, Record const& other);

// Throws FormatError where the bytes are not what `write` makes.
Record read(void const* data, size_t size);

}  // namespace sparseflow
