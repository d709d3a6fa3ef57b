// Whether a function is declared alike in two headers, as the ABI passes its parameters.
#pragma once

#include <type_traits>

namespace sparseflow {

// A parameter as the ABI passes it: pointers are alike, and enumerators an int.
template <typename T>
using Passed =
    std::conditional_t<std::is_pointer_v<T>, void*, std::conditional_t<std::is_enum_v<T>, int, std::remove_cv_t<T>>>;

template <typename Function>
struct Signature;
template <typename Result, typename... Parameters>
struct Signature<Result (*)(Parameters...)> {
  using type = Passed<Result> (*)(Passed<Parameters>...);
};

template <typename Ours, typename Theirs>
constexpr bool alike = std::is_same_v<typename Signature<Ours>::type, typename Signature<Theirs>::type>;

}  // namespace sparseflow
