// The TensorRT plugin SparseFlowLinear24: y = activation(x · Wᵀ + bias) with a 2:4 weight, on cuSPARSELt.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "linear.h"

namespace sparseflow {

constexpr char const* kName = "SparseFlowLinear24";
constexpr char const* kVersion = "1";

class Plugin final : public nvinfer1::IPluginV2DynamicExt {
 public:
  explicit Plugin(std::shared_ptr<Linear> linear);

  // A clone has the layer and its weights in common with this one, and products of its own.
  nvinfer1::IPluginV2DynamicExt* clone() const noexcept override;

  nvinfer1::DimsExprs getOutputDimensions(int32_t index, nvinfer1::DimsExprs const* inputs, int32_t input_count,
                                          nvinfer1::IExprBuilder& builder) noexcept override;
  nvinfer1::DataType getOutputDataType(int32_t index, nvinfer1::DataType const* types,
                                       int32_t count) const noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* tensors, int32_t input_count,
                                 int32_t output_count) noexcept override;
  void configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                       nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  size_t getWorkspaceSize(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::PluginTensorDesc const* outputs, int32_t output_count) const noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
                  void const* const* in, void* const* out, void* workspace, cudaStream_t stream) noexcept override;

  int32_t initialize() noexcept override;
  void terminate() noexcept override;
  void destroy() noexcept override { delete this; }
  size_t getSerializationSize() const noexcept override;
  void serialize(void* buffer) const noexcept override;

  char const* getPluginType() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  int32_t getNbOutputs() const noexcept override { return 1; }
  void setPluginNamespace(char const* name) noexcept override;
  char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

 private:
  void load();

  std::shared_ptr<Linear> linear_;
  std::shared_ptr<Weights> weights_;
  std::unique_ptr<Products> products_;
  std::string namespace_;
};

class Creator final : public nvinfer1::IPluginCreator {
 public:
  Creator();

  char const* getPluginName() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }

  // From the attributes of an ONNX node. Null, with a line in the log, where they are wrong.
  nvinfer1::IPluginV2* createPlugin(char const* name,
                                    nvinfer1::PluginFieldCollection const* fields) noexcept override;

  // From an engine. Where the bytes are no layer, one that says so when it is initialized.
  nvinfer1::IPluginV2* deserializePlugin(char const* name, void const* data, size_t size) noexcept override;

  void setPluginNamespace(char const* name) noexcept override;
  char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

 private:
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection fields_{};
  std::string namespace_;
};

}  // namespace sparseflow
