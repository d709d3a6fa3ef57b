#include "log.h"

#include <NvInferRuntime.h>

#include <cstdio>

namespace sparseflow {
namespace {

nvinfer1::ILogger::Severity severity_of(Severity severity) {
  switch (severity) {
    case Severity::kError:
      return nvinfer1::ILogger::Severity::kERROR;
    case Severity::kWarning:
      return nvinfer1::ILogger::Severity::kWARNING;
    case Severity::kVerbose:
      break;
  }
  return nvinfer1::ILogger::Severity::kVERBOSE;
}

}  // namespace

void log(Severity severity, std::string const& message) noexcept {
  try {
    auto const text = "SparseFlowLinear24: " + message;
    if (auto* const logger = ::getLogger(); logger != nullptr) {
      logger->log(severity_of(severity), text.c_str());
    } else if (severity != Severity::kVerbose) {
      std::fprintf(stderr, "%s\n", text.c_str());
    }
  } catch (...) {  // there is no memory for the text, nor for saying so
  }
}

}  // namespace sparseflow
