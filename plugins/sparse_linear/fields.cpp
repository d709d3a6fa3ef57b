#include "fields.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "bytes.h"

namespace sparseflow {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// PluginFieldType::kBF16 and kINT64, which the headers of 8.6 do not have.
constexpr int32_t kBf16Field = 9;
constexpr int32_t kInt64Field = 10;

PluginField const* find(PluginFieldCollection const& fields, char const* name) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    if (fields.fields[i].name != nullptr && std::strcmp(fields.fields[i].name, name) == 0) {
      return &fields.fields[i];
    }
  }
  return nullptr;
}

PluginField const& need(PluginFieldCollection const& fields, char const* name) {
  auto const* field = find(fields, name);
  if (field == nullptr || field->data == nullptr || field->length <= 0) {
    throw FormatError(std::string("the attribute ") + name + " is missing");
  }
  return *field;
}

int32_t number(PluginFieldCollection const& fields, char const* name) {
  auto const& field = need(fields, name);
  if (static_cast<int32_t>(field.type) == kInt64Field && field.length == 1) {
    int64_t wide = 0;
    std::memcpy(&wide, field.data, sizeof wide);
    if (wide < 0 || wide > INT32_MAX) {
      throw FormatError(std::string("the attribute ") + name + " is " + std::to_string(wide));
    }
    return static_cast<int32_t>(wide);
  }
  if (field.type != PluginFieldType::kINT32 || field.length != 1) {
    throw FormatError(std::string("the attribute ") + name + " is no integer");
  }
  int32_t value = 0;
  std::memcpy(&value, field.data, sizeof value);
  return value;
}

int32_t number_or(PluginFieldCollection const& fields, char const* name, int32_t otherwise) {
  return find(fields, name) == nullptr ? otherwise : number(fields, name);
}

template <typename T>
std::vector<T> numbers(PluginField const& field) {
  std::vector<T> values(static_cast<size_t>(field.length));
  std::memcpy(values.data(), field.data, values.size() * sizeof(T));
  return values;
}

Type type_of(PluginField const& field) {
  if (field.type == PluginFieldType::kFLOAT16) {
    return Type::kFp16;
  }
  if (static_cast<int32_t>(field.type) == kBf16Field) {
    return Type::kBf16;
  }
  throw FormatError(std::string("the attribute ") + field.name + " is neither FP16 nor BF16");
}

}  // namespace

std::vector<PluginField> field_names() {
  return {
      {"n", nullptr, PluginFieldType::kINT32, 1},        {"k", nullptr, PluginFieldType::kINT32, 1},
      {"activation", nullptr, PluginFieldType::kINT32, 1}, {"values", nullptr, PluginFieldType::kFLOAT16, 1},
      {"indices", nullptr, PluginFieldType::kINT8, 1},   {"bias", nullptr, PluginFieldType::kFLOAT16, 1},
      {"dense_below_m", nullptr, PluginFieldType::kINT32, 1},
  };
}

Layer layer_from(PluginFieldCollection const& fields) {
  Layer layer;
  layer.weight.n = number(fields, "n");
  layer.weight.k = number(fields, "k");
  auto const activation = number(fields, "activation");
  if (activation != 0 && activation != 1) {
    throw FormatError("there is no activation " + std::to_string(activation));
  }
  layer.activation = static_cast<Activation>(activation);
  layer.dense_below_m = number_or(fields, "dense_below_m", 0);
  auto const& values = need(fields, "values");
  layer.type = type_of(values);
  if (!has_type(layer.type)) {
    throw FormatError("this TensorRT has no BF16");
  }
  layer.weight.values = numbers<uint16_t>(values);
  auto const& indices = need(fields, "indices");
  if (indices.type != PluginFieldType::kINT8) {
    throw FormatError("the attribute indices is not INT8");
  }
  layer.weight.indices = numbers<uint8_t>(indices);
  if (auto const* bias = find(fields, "bias"); bias != nullptr && bias->data != nullptr && bias->length > 0) {
    if (type_of(*bias) != layer.type) {
      throw FormatError("the attributes values and bias are of two types");
    }
    layer.bias = numbers<uint16_t>(*bias);
  }
  check(layer);
  return layer;
}

bool has_type([[maybe_unused]] Type type) {
#if NV_TENSORRT_MAJOR >= 9
  return true;
#else
  return type == Type::kFp16;
#endif
}

nvinfer1::DataType data_type([[maybe_unused]] Type type) {
#if NV_TENSORRT_MAJOR >= 9
  return type == Type::kFp16 ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kBF16;
#else
  return nvinfer1::DataType::kHALF;
#endif
}

}  // namespace sparseflow
