// What the ONNX parser hands over of a node: its attributes as plugin fields.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "record.h"

namespace sparseflow {

// The attributes that are read: n, k, activation and, if it is there, dense_below_m (INT); values, indices and,
// if there is one, bias (TENSOR).
std::vector<nvinfer1::PluginField> field_names();

// Throws FormatError where a field is missing, of another type or size, or says what this TensorRT does not have.
Layer layer_from(nvinfer1::PluginFieldCollection const& fields);

// Whether this release of TensorRT has tensors of a type.
bool has_type(Type type);
nvinfer1::DataType data_type(Type type);

}  // namespace sparseflow
