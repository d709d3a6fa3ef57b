#include "record.h"

#include <string>

#include "bytes.h"

namespace sparseflow {
namespace {

constexpr uint32_t kMagic = 0x34324653;  // "SF24"
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMostChoices = 4096;
constexpr int64_t kMostRows = int64_t{1} << 40;

template <typename Enum>
Enum enum_of(uint8_t value, Enum last, char const* what) {
  if (value > static_cast<uint8_t>(last)) {
    throw FormatError(std::string("its ") + what + " is " + std::to_string(value) +
                      ", which this version does not know");
  }
  return static_cast<Enum>(value);
}

void write_choices(Writer& writer, Choices const& choices) {
  writer.text(choices.gpu);
  writer.number(choices.library);
  writer.number<uint64_t>(choices.all.size());
  for (auto const& choice : choices.all) {
    writer.number(choice.m);
    writer.number(choice.algorithm.id);
    writer.number(choice.algorithm.split_k);
    writer.number(choice.algorithm.split_k_mode);
    writer.number(choice.algorithm.split_k_buffers);
    writer.number(choice.workspace);
    writer.number(choice.microseconds);
  }
}

Choices read_choices(Reader& reader) {
  Choices choices;
  choices.gpu = reader.text("GPU's name");
  choices.library = reader.number<int32_t>("library version");
  auto const count = reader.number<uint64_t>("number of choices");
  if (count > kMostChoices) {
    throw FormatError("it claims " + std::to_string(count) + " choices");
  }
  for (uint64_t i = 0; i < count; ++i) {
    Choice choice;
    choice.m = reader.number<int64_t>("choices");
    choice.algorithm.id = reader.number<int32_t>("choices");
    choice.algorithm.split_k = reader.number<int32_t>("choices");
    choice.algorithm.split_k_mode = reader.number<int32_t>("choices");
    choice.algorithm.split_k_buffers = reader.number<int32_t>("choices");
    choice.workspace = reader.number<uint64_t>("choices");
    choice.microseconds = reader.number<float>("choices");
    auto const previous = choices.all.empty() ? int64_t{0} : choices.all.back().m;
    if (choice.m <= previous || choice.m > kMostRows || choice.m % kRows != 0) {
      throw FormatError("its choices are not in order");
    }
    choices.all.push_back(choice);
  }
  return choices;
}

}  // namespace

void check(Layer const& layer) {
  check(layer.weight);
  if (!layer.bias.empty() && layer.bias.size() != static_cast<uint64_t>(layer.weight.n)) {
    throw FormatError("a bias of " + std::to_string(layer.bias.size()) + " does not fit " +
                      std::to_string(layer.weight.n) + " outputs");
  }
}

size_t written_size(Layer const& layer, Choices const& choices) {
  auto const& weight = layer.weight;
  Writer rest;  // all but the three large parts
  write_choices(rest, choices);
  return 2 * sizeof(uint32_t) + 2 * sizeof(uint8_t) + 5 * sizeof(uint64_t) +
         sizeof(uint16_t) * (weight.values.size() + layer.bias.size()) + weight.indices.size() + rest.take().size();
}

std::vector<uint8_t> write(Layer const& layer, Choices const& choices) {
  Writer writer;
  writer.number(kMagic);
  writer.number(kVersion);
  writer.number(static_cast<uint8_t>(layer.type));
  writer.number(static_cast<uint8_t>(layer.activation));
  writer.number(layer.weight.n);
  writer.number(layer.weight.k);
  writer.numbers(layer.weight.values);
  writer.numbers(layer.weight.indices);
  writer.numbers(layer.bias);
  write_choices(writer, choices);
  return writer.take();
}

Record read(void const* data, size_t size) {
  Reader reader(data, size);
  if (reader.number<uint32_t>("mark") != kMagic) {
    throw FormatError("it is not a layer of SparseFlowLinear24");
  }
  if (auto const version = reader.number<uint32_t>("version"); version != kVersion) {
    throw FormatError("it is of version " + std::to_string(version) + ", and this plugin reads version " +
                      std::to_string(kVersion));
  }
  Record record;
  auto& layer = record.layer;
  layer.type = enum_of(reader.number<uint8_t>("type"), Type::kBf16, "type");
  layer.activation = enum_of(reader.number<uint8_t>("activation"), Activation::kRelu, "activation");
  layer.weight.n = reader.number<int64_t>("n");
  layer.weight.k = reader.number<int64_t>("k");
  layer.weight.values = reader.numbers<uint16_t>("values");
  layer.weight.indices = reader.numbers<uint8_t>("indices");
  layer.bias = reader.numbers<uint16_t>("bias");
  check(layer);
  record.choices = read_choices(reader);
  reader.end();
  return record;
}

}  // namespace sparseflow
