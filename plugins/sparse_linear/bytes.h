// Length-checked reading and plain writing of the bytes that an engine keeps for a plugin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sparseflow {

// What is wrong with bytes, fields or sizes that were given to the plugin.
class FormatError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Appends values in this machine's byte order: an engine is no more portable than that.
class Writer {
 public:
  template <typename T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    raw(&value, sizeof value);
  }

  void blob(void const* data, size_t size) {
    number<uint64_t>(size);
    raw(data, size);
  }

  template <typename T>
  void numbers(std::vector<T> const& values) {
    blob(values.data(), values.size() * sizeof(T));
  }

  void text(std::string const& value) { blob(value.data(), value.size()); }

  std::vector<uint8_t> take() { return std::move(bytes_); }

 private:
  void raw(void const* data, size_t size) {
    if (size != 0) {
      auto const* first = static_cast<uint8_t const*>(data);
      bytes_.insert(bytes_.end(), first, first + size);
    }
  }

  std::vector<uint8_t> bytes_;
};

// Reads what Writer wrote. Nothing is read past the end, and nothing is allocated for bytes that are not there.
class Reader {
 public:
  Reader(void const* data, size_t size) : next_(static_cast<uint8_t const*>(data)), left_(data ? size : 0) {}

  template <typename T>
  T number(char const* what) {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    std::memcpy(&value, raw(sizeof value, what), sizeof value);
    return value;
  }

  template <typename T>
  std::vector<T> numbers(char const* what) {
    auto const size = number<uint64_t>(what);
    if (size > left_ || size % sizeof(T) != 0) {
      throw FormatError(std::string("the length of its ") + what + " is wrong");
    }
    std::vector<T> values(size / sizeof(T));
    if (size != 0) {
      std::memcpy(values.data(), raw(size, what), size);
    }
    return values;
  }

  std::string text(char const* what) {
    auto const letters = numbers<char>(what);
    return {letters.begin(), letters.end()};
  }

  void end() const {
    if (left_ != 0) {
      throw FormatError(std::to_string(left_) + " bytes stand behind its end");
    }
  }

 private:
  uint8_t const* raw(uint64_t size, char const* what) {
    if (size > left_) {
      throw FormatError(std::string("it ends before its ") + what);
    }
    auto const* here = next_;
    next_ += size;
    left_ -= size;
    return here;
  }

  uint8_t const* next_;
  size_t left_;
};

}  // namespace sparseflow
