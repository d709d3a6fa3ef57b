// Shared libraries that are looked for when they are first needed: the plugin is linked to none of them.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace sparseflow {

// A library of NVIDIA's is missing, too old, or refuses something.
class LibraryError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where a library is looked for, and what is said where it is not found.
struct Wanted {
  std::string title;                 // "cuSPARSELt"
  std::string variable;              // the environment variable that may name it, or its folder
  std::vector<std::string> sonames;  // the newest first
  std::string install;               // what to do about it, without a capital and a full stop
  std::vector<std::string> helpers;  // what it loads for itself, by name: loaded before, from where the plugin looks
};

// A library that stays loaded: what it registers with CUDA does not survive being unloaded.
class Library {
 public:
  // Throws LibraryError where there is none.
  explicit Library(Wanted wanted);

  // Whether one of its helpers was found, or it has none.
  bool is_helped() const { return helped_; }

  // Sets `function` to the symbol. Throws LibraryError where there is none.
  template <typename Function>
  void find(char const* symbol, Function& function) const {
    function = reinterpret_cast<Function>(address(symbol));
  }

  // Throws LibraryError about this library: `what` follows its title and name, the way to get it comes after.
  [[noreturn]] void refuse(std::string const& what) const;

 private:
  void* address(char const* symbol) const;

  Wanted wanted_;
  std::string name_;
  void* loaded_ = nullptr;
  bool helped_ = false;
};

}  // namespace sparseflow
