#include "library.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <utility>

namespace sparseflow {
namespace {

bool is_folder(std::string const& path) {
  struct stat about {};
  return stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

// What is handed to the loader, in turn.
std::vector<std::string> names(Wanted const& wanted) {
  auto const* given = std::getenv(wanted.variable.c_str());
  if (given == nullptr || *given == '\0') {
    return wanted.sonames;
  }
  if (!is_folder(given)) {
    return {given};
  }
  std::vector<std::string> inside;
  for (auto const& soname : wanted.sonames) {
    inside.push_back(std::string(given) + "/" + soname);
  }
  return inside;
}

}  // namespace

Library::Library(Wanted wanted) : wanted_(std::move(wanted)), helped_(wanted_.helpers.empty()) {
  for (auto const& helper : wanted_.helpers) {
    helped_ = helped_ || dlopen(helper.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr;
  }
  std::string why = "no reason given";
  for (auto const& name : names(wanted_)) {
    loaded_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (loaded_ != nullptr) {
      name_ = name;
      return;
    }
    if (auto const* said = dlerror(); said != nullptr) {
      why = said;
    }
  }
  throw LibraryError(wanted_.title + " does not load (" + why + "): " + wanted_.install +
                     ", and name the library or its folder in " + wanted_.variable);
}

void* Library::address(char const* symbol) const {
  auto* const found = dlsym(loaded_, symbol);
  if (found == nullptr) {
    refuse(std::string("has no ") + symbol);
  }
  return found;
}

void Library::refuse(std::string const& what) const {
  throw LibraryError(wanted_.title + " (" + name_ + ") " + what + ": " + wanted_.install + ", and name it in " +
                     wanted_.variable);
}

}  // namespace sparseflow
