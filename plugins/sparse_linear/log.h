// What the plugin has to say, through TensorRT's logger.
#pragma once

#include <string>

namespace sparseflow {

enum class Severity { kError, kWarning, kVerbose };

// Never throws. Errors go to stderr where TensorRT has no logger.
void log(Severity severity, std::string const& message) noexcept;

}  // namespace sparseflow
