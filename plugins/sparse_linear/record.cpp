#include "record.h"

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include "bytes.h"

namespace sparseflow {
namespace {

constexpr uint32_t kMagic = 0x34324653;  // "SF24"
constexpr uint32_t kVersion = 2;
constexpr uint64_t kMostChoices = 4096;
constexpr int64_t kMostRows = int64_t{1} << 40;
constexpr int32_t kMostParts = 64;  // of a split K; 2 and 4 are tried

template <typename Enum>
Enum enum_of(uint8_t value, Enum last, char const* what) {
  if (value > static_cast<uint8_t>(last)) {
    throw FormatError(std::string("its ") + what + " is " + std::to_string(value) +
                      ", which this version does not know");
  }
  return static_cast<Enum>(value);
}

void write(Writer& writer, Algorithm const& algorithm) {
  writer.number(algorithm.id);
  writer.number(algorithm.split_k);
  writer.number(algorithm.split_k_mode);
  writer.number(algorithm.split_k_buffers);
}

void write(Writer& writer, DenseAlgorithm const& algorithm) {
  for (auto const word : algorithm.words) {
    writer.number(word);
  }
}

void read(Reader& reader, Algorithm& algorithm) {
  for (auto* const part :
       {&algorithm.id, &algorithm.split_k, &algorithm.split_k_mode, &algorithm.split_k_buffers}) {
    *part = reader.number<int32_t>("choices");
  }
  auto const& [id, parts, mode, buffers] = algorithm;
  auto const is_split = parts != 1;
  if (id < 0 || id >= kMostAlgorithms || parts < 1 || parts > kMostParts || mode < (is_split ? 1 : 0) ||
      mode > (is_split ? 2 : 0) || buffers < 0 || buffers > (is_split ? kMostParts : 0)) {
    throw FormatError("its choices hold algorithm " + std::to_string(id) + " with K split in " + std::to_string(parts) +
                      ", mode " + std::to_string(mode) + ", buffers " + std::to_string(buffers));
  }
}

void read(Reader& reader, DenseAlgorithm& algorithm) {
  for (auto& word : algorithm.words) {
    word = reader.number<uint64_t>("dense choices");
  }
}

template <typename ChoiceT>
void write_list(Writer& writer, std::vector<ChoiceT> const& choices) {
  writer.number<uint64_t>(choices.size());
  for (auto const& choice : choices) {
    writer.number(choice.m);
    write(writer, choice.algorithm);
    writer.number(choice.workspace);
    writer.number(choice.microseconds);
  }
}

template <typename ChoiceT>
std::vector<ChoiceT> read_list(Reader& reader, int64_t multiple) {
  auto const count = reader.number<uint64_t>("number of choices");
  if (count > kMostChoices) {
    throw FormatError("it claims " + std::to_string(count) + " choices");
  }
  std::vector<ChoiceT> choices;
  for (uint64_t i = 0; i < count; ++i) {
    ChoiceT choice;
    choice.m = reader.number<int64_t>("choices");
    read(reader, choice.algorithm);
    choice.workspace = reader.number<uint64_t>("choices");
    choice.microseconds = reader.number<float>("choices");
    auto const previous = choices.empty() ? int64_t{0} : choices.back().m;
    if (choice.m <= previous || choice.m > kMostRows || choice.m % multiple != 0) {
      throw FormatError("its choices are not in order");
    }
    if (!(choice.microseconds >= 0 && choice.microseconds <= std::numeric_limits<float>::max())) {
      throw FormatError("its choices hold a time that is none");
    }
    choices.push_back(choice);
  }
  return choices;
}

void write_choices(Writer& writer, Choices const& choices) {
  writer.text(choices.gpu);
  writer.number(choices.library);
  writer.number(choices.dense_library);
  write_list(writer, choices.all);
  write_list(writer, choices.dense);
}

Choices read_choices(Reader& reader) {
  Choices choices;
  choices.gpu = reader.text("GPU's name");
  choices.library = reader.number<int32_t>("library version");
  choices.dense_library = reader.number<int32_t>("library version");
  choices.all = read_list<Choice>(reader, kRows);
  choices.dense = read_list<DenseChoice>(reader, 1);
  return choices;
}

}  // namespace

void check(Layer const& layer) {
  check(layer.weight);
  if (layer.dense_below_m < 0 || layer.dense_below_m > kMostRows) {
    throw FormatError("dense_below_m is " + std::to_string(layer.dense_below_m) + ", which is no number of rows");
  }
  if (!layer.bias.empty() && layer.bias.size() != static_cast<uint64_t>(layer.weight.n)) {
    throw FormatError("a bias of " + std::to_string(layer.bias.size()) + " does not fit " +
                      std::to_string(layer.weight.n) + " outputs");
  }
}

size_t written_size(Layer const& layer, Choices const& choices) {
  auto const& weight = layer.weight;
  Writer rest;  // all but the three large parts
  write_choices(rest, choices);
  return 2 * sizeof(uint32_t) + 2 * sizeof(uint8_t) + 6 * sizeof(uint64_t) +
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
  writer.number(layer.dense_below_m);
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
  layer.dense_below_m = reader.number<int64_t>("dense_below_m");
  layer.weight.values = reader.numbers<uint16_t>("values");
  layer.weight.indices = reader.numbers<uint8_t>("indices");
  layer.bias = reader.numbers<uint16_t>("bias");
  check(layer);
  record.choices = read_choices(reader);
  reader.end();
  return record;
}

bool is_same(Layer const& layer, Choices const& choices, Record const& other) {
  auto const parts = [](Layer const& one) {
    return std::tie(one.type, one.activation, one.dense_below_m, one.weight.n, one.weight.k, one.bias,
                    one.weight.indices, one.weight.values);
  };
  if (parts(layer) != parts(other.layer)) {
    return false;
  }
  auto const same = [](auto const& one, auto const& two) {
    return one.size() == two.size() && std::equal(one.begin(), one.end(), two.begin(), [](auto const& a, auto const& b) {
             return a.m == b.m && a.workspace == b.workspace && a.microseconds == b.microseconds &&
                    is_same(a.algorithm, b.algorithm);
           });
  };
  auto const& others = other.choices;
  return std::tie(choices.gpu, choices.library, choices.dense_library) ==
             std::tie(others.gpu, others.library, others.dense_library) &&
         same(choices.all, others.all) && same(choices.dense, others.dense);
}

}  // namespace sparseflow
