// Arrays as Python hands them over, and checks of their shapes.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "codec/layout.h"
#include "kernels/rows.h"

namespace penstock {

namespace nb = nanobind;

template <typename T>
using Vector = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<nb::numpy, T, nb::ndim<2>, nb::device::cpu>;
template <typename T>
using Tensor3 = nb::ndarray<nb::numpy, T, nb::ndim<3>, nb::device::cpu>;

inline void append(std::string& message, std::string_view part) { message += part; }
inline void append(std::string& message, std::int64_t part) { message += std::to_string(part); }

// A ValueError says `parts`, one after the other; nothing is allocated for those of a call that is right.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::string message;
  (append(message, parts), ...);
  throw std::invalid_argument(message);
}

inline void require_equal(std::int64_t actual, std::int64_t expected, const char* what) {
  require(actual == expected, what, " is ", actual, ", expected ", expected);
}

// Elements of a row must be adjacent and rows must not overlap; the distance between rows is free.
template <typename Array>
auto rows_of(const Array& array, const char* name) {
  const std::int64_t rows = array.shape(0);
  std::int64_t cols = 1;
  bool adjacent = true;
  for (int axis = static_cast<int>(array.ndim()) - 1; axis > 0; --axis) {
    adjacent = adjacent && (array.shape(axis) <= 1 || array.stride(axis) == cols);
    cols *= array.shape(axis);
  }
  require(adjacent || rows == 0 || cols == 0, name, ": the elements of a row are not adjacent");
  const std::int64_t stride = rows > 1 ? array.stride(0) : cols;
  require(stride >= cols, name, ": rows overlap or run backwards");
  return Rows<typename Array::Scalar>{array.data(), rows, cols, stride};
}

template <typename A, typename B>
void require_same_shape(const Rows<A>& a, const Rows<B>& b, const char* what) {
  require(a.rows == b.rows && a.cols == b.cols, what, " differ in shape");
}

// Weights must suit the activations and the outputs of a product.
inline void require_product(const char* kind, std::int64_t rows, std::int64_t cols, const Rows<const float>& x,
                            const Rows<float>& out) {
  require(rows == out.cols && cols == x.cols, kind, " weights are ", rows, " x ", cols, ", not ", out.cols, " x ",
          x.cols);
}

// Memory of the caller's for `bytes` bytes, as aligned as kernels have it: kAlignmentBytes more than that are enough.
inline constexpr std::int64_t kAlignmentBytes = kChunkAlignment - 1;

inline std::uint8_t* aligned(const Vector<std::uint8_t>& memory, std::int64_t bytes, const char* name) {
  void* data = memory.data();
  std::size_t room = memory.shape(0);
  require(std::align(kChunkAlignment, static_cast<std::size_t>(bytes), data, room) != nullptr, name, " is too small");
  return static_cast<std::uint8_t*>(data);
}

inline void require_packable(std::int64_t rows, std::int64_t cols) {
  require(rows > 0 && cols > 0 && cols <= kMostColumns, "a packed matrix has at least one row, and rows of 1 to ",
          kMostColumns, " weights");
  require(rows <= std::numeric_limits<std::int64_t>::max() / (4 * kMostColumns), "too many rows");
}

}  // namespace penstock
