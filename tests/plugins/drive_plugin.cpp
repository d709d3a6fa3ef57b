// Drives the plugin's class and its creator as TensorRT does, on the CPU libraries in fake/ and against a release's
// headers, without TensorRT itself: REGISTER_TENSORRT_PLUGIN is left out, and the logger is ours.
#include <NvInferRuntime.h>

#undef REGISTER_TENSORRT_PLUGIN
#define REGISTER_TENSORRT_PLUGIN(name) static_assert(true, "")

#include "plugin.cpp"

#include <algorithm>
#include <cstdio>
#include <random>

#include "fake/at_once.h"
#include "fake/multiply.h"

#define REQUIRE(condition) require(condition, #condition, __LINE__)

namespace {

using namespace nvinfer1;
using sparseflow::Creator;

std::string logged;

class Logger : public ILogger {
  void log(Severity severity, char const* text) noexcept override {
    if (severity != Severity::kVERBOSE) {
      logged += std::string(text) + "\n";
    }
  }
} logger;

void require(bool condition, char const* what, int line) {
  if (!condition) {
    throw std::runtime_error("line " + std::to_string(line) + ": " + what + "\n" + logged);
  }
}

constexpr int32_t kN = 16;
constexpr int32_t kK = 32;
constexpr int32_t kMost = 700;

struct Node {
  int32_t n = kN, k = kK, activation = 1, dense_below_m = 8;
  std::vector<uint16_t> values = std::vector<uint16_t>(kN * kK / 2);
  std::vector<uint8_t> indices = std::vector<uint8_t>(kN * kK / 8);
  std::vector<uint16_t> bias = std::vector<uint16_t>(kN);

  Node() {
    std::minstd_rand random(1);
    uint8_t const pairs[] = {4, 8, 12, 9, 13, 14};
    for (auto* const numbers : {&values, &bias}) {
      for (auto& value : *numbers) {
        value = fake::narrow(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 1000, CUDA_R_16F);
      }
    }
    for (auto& byte : indices) {
      byte = static_cast<uint8_t>(pairs[random() % 6] | pairs[random() % 6] << 4);
    }
  }

  std::vector<PluginField> fields() const {
    auto const size = [](auto const& numbers) { return static_cast<int32_t>(numbers.size()); };
    return {{"n", &n, PluginFieldType::kINT32, 1},
            {"k", &k, PluginFieldType::kINT32, 1},
            {"activation", &activation, PluginFieldType::kINT32, 1},
            {"values", values.data(), PluginFieldType::kFLOAT16, size(values)},
            {"indices", indices.data(), PluginFieldType::kINT8, size(indices)},
            {"bias", bias.data(), PluginFieldType::kFLOAT16, size(bias)},
            {"dense_below_m", &dense_below_m, PluginFieldType::kINT32, 1}};
  }

  void multiply(int32_t m, uint16_t const* x, uint16_t* y) const {
    std::vector<uint16_t> dense(kN * kK);
    sparseflow::expand({kN, kK, values, indices}, 0, kN, dense.data());
    fake::multiply({kN, kK, m, CUDA_R_16F, activation == 1, bias.data()}, dense.data(), x, y);
  }
};

IPluginV2DynamicExt* create(Creator& creator, std::vector<PluginField> const& fields) {
  PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
  return static_cast<IPluginV2DynamicExt*>(creator.createPlugin("layer", &collection));
}

DynamicPluginTensorDesc tensor(int32_t m, int32_t columns) {
  DynamicPluginTensorDesc tensor{};
  tensor.desc.dims = {3, {m < 0 ? -1 : 1, m, columns}};
  tensor.desc.type = DataType::kHALF;
  tensor.desc.format = TensorFormat::kLINEAR;
  tensor.min = {3, {1, m < 0 ? 1 : m, columns}};
  tensor.max = {3, {1, m < 0 ? kMost : m, columns}};
  return tensor;
}

// One context's clone, its workspace and its stream.
void run_context(IPluginV2DynamicExt const& engines, Node const& node, size_t workspace_size, unsigned seed) {
  auto* const plugin = engines.clone();
  auto const stream = sparseflow::cuda::new_stream();
  auto const workspace = sparseflow::cuda::allocate(workspace_size);
  std::minstd_rand random(seed);
  for (int32_t const m : {1, 7, 8, 9, 64, 255, 256, 257, 300, kMost, 3}) {
    std::vector<uint16_t> x(static_cast<size_t>(m * kK)), y(static_cast<size_t>(m * kN)), exact(y.size());
    for (auto& value : x) {
      value = fake::narrow(static_cast<float>(random() % 100) / 50 - 1, CUDA_R_16F);
    }
    node.multiply(m, x.data(), exact.data());
    auto const in = tensor(m, kK), out = tensor(m, kN);
    plugin->configurePlugin(&in, 1, &out, 1);
    void const* const inputs[] = {x.data()};
    void* const outputs[] = {y.data()};
    fake::forbid();
    auto const code = plugin->enqueue(&in.desc, &out.desc, inputs, outputs, workspace.get(), stream.get());
    auto const rules_broken = fake::allow();
    REQUIRE(code == 0);
    REQUIRE(rules_broken == 0);
    REQUIRE(y == exact);
  }
  auto const wrong = tensor(8, kK - 16), out = tensor(8, kN);
  void const* const inputs[] = {nullptr};
  void* const outputs[] = {nullptr};
  REQUIRE(plugin->enqueue(&wrong.desc, &out.desc, inputs, outputs, workspace.get(), stream.get()) != 0);
  plugin->destroy();
}

void build_and_run() {
  auto const before = fake::live();
  Creator creator;
  creator.setPluginNamespace("");
  REQUIRE(creator.getFieldNames()->nbFields == 7);
  Node const node;
  auto* const given = create(creator, node.fields());
  REQUIRE(given != nullptr);
  auto* const network = given->clone();  // as addPluginV2 does
  given->destroy();
  auto const in = tensor(-1, kK), out = tensor(-1, kN);
  PluginTensorDesc const both[] = {in.desc, out.desc};
  REQUIRE(network->supportsFormatCombination(0, both, 1, 1) && network->supportsFormatCombination(1, both, 1, 1));
  REQUIRE(network->getOutputDataType(0, &in.desc.type, 1) == DataType::kHALF);
  auto* const built = network->clone();
  built->configurePlugin(&in, 1, &out, 1);
  auto const largest = tensor(kMost, kK), largest_out = tensor(kMost, kN);
  auto const workspace = built->getWorkspaceSize(&largest.desc, 1, &largest_out.desc, 1);
  REQUIRE(built->initialize() == 0);
  run_context(*built, node, workspace, 1);  // as the builder times it
  std::vector<char> bytes(built->getSerializationSize());
  built->serialize(bytes.data());
  built->terminate();
  built->destroy();
  network->destroy();
  REQUIRE(fake::live() == before);

  for (size_t length = 0; length < bytes.size(); length += 5) {
    std::vector<char> const cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
    auto* const refused =
        static_cast<IPluginV2DynamicExt*>(creator.deserializePlugin("cut", cut.data(), cut.size()));
    REQUIRE(refused != nullptr && refused->initialize() != 0);  // TensorRT 8.6.0 does not survive having none
    auto* const copy = refused->clone();
    REQUIRE(copy->initialize() != 0);
    copy->destroy();
    refused->terminate();
    refused->destroy();
  }
  logged.clear();
  auto* const engine =
      static_cast<IPluginV2DynamicExt*>(creator.deserializePlugin("layer", bytes.data(), bytes.size()));
  REQUIRE(engine != nullptr && engine->initialize() == 0);
  REQUIRE(engine->getSerializationSize() == bytes.size());
  auto const once = fake::live();
  auto* const profile =  // the same layer, as an engine has it once more for its second profile
      static_cast<IPluginV2DynamicExt*>(creator.deserializePlugin("layer", bytes.data(), bytes.size()));
  REQUIRE(profile != nullptr && profile->initialize() == 0 && fake::live() == once);
  run_context(*profile, node, workspace, 7);
  profile->terminate();
  profile->destroy();
  REQUIRE(fake::live() == once);
  auto other = bytes;
  auto const* const values = reinterpret_cast<char const*>(node.values.data());
  auto const found = std::search(other.begin(), other.end(), values, values + 16);
  REQUIRE(found != other.end());
  *found = static_cast<char>(*found ^ 1);  // another weight
  auto* const unlike =
      static_cast<IPluginV2DynamicExt*>(creator.deserializePlugin("other", other.data(), other.size()));
  REQUIRE(unlike != nullptr && unlike->initialize() == 0 && fake::live() > once);
  unlike->terminate();
  unlike->destroy();
  auto const failures = at_once(3, [&](unsigned seed) { run_context(*engine, node, workspace, seed); });
  for (auto const& failure : failures) {
    require(failure.empty(), failure.c_str(), 0);
  }
  auto* const late = engine->clone();
  engine->terminate();
  engine->destroy();  // before the last context
  late->destroy();
  REQUIRE(fake::live() == before);
}

void bad_nodes() {
  Creator creator;
  auto const refused = [&](std::vector<PluginField> const& fields, char const* why) {
    logged.clear();
    auto* const made = create(creator, fields);
    REQUIRE(made == nullptr);
    REQUIRE(logged.find(why) != std::string::npos);
  };
  Node node;
  auto const whole = node.fields();
  for (size_t missing = 0; missing < 5; ++missing) {
    auto fields = whole;
    fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(missing));
    refused(fields, "is missing");
  }
  auto fields = whole;
  --fields[3].length;
  refused(fields, "comes with");
  fields = whole;
  fields[4].type = PluginFieldType::kINT32;
  refused(fields, "indices is not INT8");
  fields = whole;
  fields[3].type = PluginFieldType::kFLOAT32;
  refused(fields, "neither FP16 nor BF16");
  fields = whole;
  --fields[5].length;
  refused(fields, "does not fit");
  node.dense_below_m = -1;
  refused(node.fields(), "dense_below_m is -1");
  node.dense_below_m = 0;
  node.activation = 2;
  refused(node.fields(), "no activation 2");
  node.activation = 0;
  fields = node.fields();
  fields.resize(5);  // neither bias nor dense_below_m
  auto* const least = create(creator, fields);
  REQUIRE(least != nullptr);
  least->destroy();
}

// What fails where TensorRT does not listen keeps an engine from being built.
void failed_measurements() {
  Creator creator;
  Node const node;
  auto* const plugin = create(creator, node.fields());
  auto const in = tensor(-1, kK), out = tensor(-1, kN);
  auto const wrong = tensor(-1, kK + 16);
  plugin->configurePlugin(&wrong, 1, &out, 1);
  REQUIRE(logged.find("x has 48 columns") != std::string::npos);
  auto* const configured = plugin->clone();
  setenv("FAKE_REFUSES", "1", 1);
  DynamicPluginTensorDesc larger = in;  // another number of rows than any measured before
  larger.max.d[1] = kMost + 8;
  configured->configurePlugin(&larger, 1, &out, 1);
  unsetenv("FAKE_REFUSES");
  REQUIRE(logged.find("refused by the fake") != std::string::npos);
  configured->destroy();
  REQUIRE(plugin->initialize() != 0);  // a clone of it, too
  plugin->destroy();
}

}  // namespace

extern "C" nvinfer1::ILogger* getLogger() noexcept { return &logger; }

int main() {
  try {
    build_and_run();
    bad_nodes();
    failed_measurements();
    return 0;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
