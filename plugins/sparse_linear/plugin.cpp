#include "plugin.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "bytes.h"
#include "fields.h"
#include "log.h"

namespace sparseflow {
namespace {

// TensorRT calls through noexcept functions: what is thrown in there is logged and becomes `otherwise`.
template <typename Result, typename Work>
Result guarded(char const* doing, Result otherwise, Work&& work) noexcept {
  try {
    return work();
  } catch (std::exception const& error) {
    log(Severity::kError, std::string(doing == nullptr ? "" : doing) + ": " + error.what());
  } catch (...) {
    log(Severity::kError, doing == nullptr ? "" : doing);
  }
  return otherwise;
}

// M of x[…, k]: all dimensions but the last. -1 where one is not known.
int64_t rows(nvinfer1::Dims const& dims) {
  int64_t product = 1;
  for (int32_t i = 0; i + 1 < dims.nbDims; ++i) {
    if (dims.d[i] < 0) {
      return -1;
    }
    product *= dims.d[i];
  }
  return product;
}

void check_columns(nvinfer1::Dims const& dims, int64_t k) {
  auto const last = dims.nbDims > 0 ? int64_t{dims.d[dims.nbDims - 1]} : 0;
  if (last >= 0 && last != k) {
    throw FormatError("x has " + std::to_string(last) + " columns, and the weight takes " + std::to_string(k));
  }
}

// What an engine holds. Where it cannot be read, a layer that fails when it is initialized: given no plugin at all,
// TensorRT 8.6.0 ends in a segmentation fault.
std::shared_ptr<Linear> stored(char const* name, void const* data, size_t size) {
  try {
    auto record = read(data, size);
    if (!has_type(record.layer.type)) {
      throw FormatError("this TensorRT has no BF16");
    }
    return shared_linear(std::move(record));
  } catch (std::exception const& error) {
    return std::make_shared<Linear>(std::string(name == nullptr ? "" : name) + ": " + error.what());
  }
}

}  // namespace

Plugin::Plugin(std::shared_ptr<Linear> linear) : linear_(std::move(linear)) {}

nvinfer1::IPluginV2DynamicExt* Plugin::clone() const noexcept {
  return guarded("cloning", static_cast<Plugin*>(nullptr), [this] {
    auto copy = std::make_unique<Plugin>(linear_);
    copy->namespace_ = namespace_;
    if (weights_) {  // a context's clone is used without being initialized
      copy->weights_ = weights_;
      copy->products_ = std::make_unique<Products>(linear_, weights_);
    }
    return copy.release();
  });
}

nvinfer1::DimsExprs Plugin::getOutputDimensions(int32_t, nvinfer1::DimsExprs const* inputs, int32_t,
                                                nvinfer1::IExprBuilder& builder) noexcept {
  auto output = inputs[0];
  if (output.nbDims > 0) {
    output.d[output.nbDims - 1] = builder.constant(static_cast<int32_t>(linear_->layer().weight.n));
  }
  return output;
}

nvinfer1::DataType Plugin::getOutputDataType(int32_t, nvinfer1::DataType const*, int32_t) const noexcept {
  return data_type(linear_->layer().type);
}

bool Plugin::supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  auto const& tensor = tensors[position];
  return input_count == 1 && output_count == 1 && tensor.format == nvinfer1::TensorFormat::kLINEAR &&
         tensor.type == data_type(linear_->layer().type);
}

void Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t,
                             nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
  guarded("configuring", false, [&] {
    load();
    auto const& input = inputs[0];
    check_columns(input.desc.dims, linear_->layer().weight.k);
    auto const m = rows(input.desc.dims);
    // A profile's range comes with unknown dimensions, while an engine is built; then, and from contexts, come
    // shapes. A network without unknown dimensions has shapes alone.
    if (m < 0) {
      auto const largest = std::max(rows(input.max), int64_t{1});
      linear_->measure(*weights_, std::clamp(rows(input.min), int64_t{1}, largest), largest);
    } else if (m > 0) {
      if (!linear_->is_measured()) {
        linear_->measure(*weights_, m, m);
      }
      products_->prepare(m);
    }
    return true;
  });
}

size_t Plugin::getWorkspaceSize(nvinfer1::PluginTensorDesc const* inputs, int32_t, nvinfer1::PluginTensorDesc const*,
                                int32_t) const noexcept {
  auto const m = rows(inputs[0].dims);
  return Products::workspace(linear_->layer().weight, m < 0 ? kMostCopied : m);
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const*,
                        void const* const* in, void* const* out, void* workspace, cudaStream_t stream) noexcept {
  return guarded("running", 1, [&] {
    if (!products_) {
      throw FormatError("it has not been initialized");
    }
    check_columns(inputs[0].dims, linear_->layer().weight.k);
    products_->run(rows(inputs[0].dims), in[0], out[0], workspace, stream);
    return 0;
  });
}

int32_t Plugin::initialize() noexcept {
  return guarded("loading weights", 1, [this] {
    load();
    return 0;
  });
}

void Plugin::load() {
  linear_->check_measured();  // or there is no engine
  if (!weights_) {
    weights_ = linear_->weights();
    products_ = std::make_unique<Products>(linear_, weights_);
  }
}

void Plugin::terminate() noexcept {
  products_.reset();
  weights_.reset();
}

size_t Plugin::getSerializationSize() const noexcept {
  return guarded("measuring its size", size_t{0}, [this] { return linear_->written_size(); });
}

void Plugin::serialize(void* buffer) const noexcept {
  guarded("serializing", false, [&] {
    auto const bytes = linear_->written();
    std::memcpy(buffer, bytes.data(), bytes.size());
    return true;
  });
}

void Plugin::setPluginNamespace(char const* name) noexcept {
  guarded("naming", false, [&] {
    namespace_ = name == nullptr ? "" : name;
    return true;
  });
}

Creator::Creator() : names_(field_names()) {
  fields_.nbFields = static_cast<int32_t>(names_.size());
  fields_.fields = names_.data();
}

nvinfer1::IPluginV2* Creator::createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields) noexcept {
  return guarded(name, static_cast<Plugin*>(nullptr), [&] {
    Record record;
    record.layer = layer_from(*fields);
    auto plugin = std::make_unique<Plugin>(std::make_shared<Linear>(std::move(record)));
    plugin->setPluginNamespace(namespace_.c_str());
    return plugin.release();
  });
}

nvinfer1::IPluginV2* Creator::deserializePlugin(char const* name, void const* data, size_t size) noexcept {
  return guarded(name, static_cast<Plugin*>(nullptr), [&] {
    auto plugin = std::make_unique<Plugin>(stored(name, data, size));
    plugin->setPluginNamespace(namespace_.c_str());
    return plugin.release();
  });
}

void Creator::setPluginNamespace(char const* name) noexcept {
  guarded("naming", false, [&] {
    namespace_ = name == nullptr ? "" : name;
    return true;
  });
}

REGISTER_TENSORRT_PLUGIN(Creator);

}  // namespace sparseflow
