// Arrays as Python hands them over, and checks of their shapes.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

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

inline void require(bool condition, const std::string& problem) {
  if (!condition) throw std::invalid_argument(problem);
}

inline void require_equal(std::int64_t actual, std::int64_t expected, const char* what) {
  if (actual != expected) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(actual) + ", expected " +
                                std::to_string(expected));
  }
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
  require(adjacent || rows == 0 || cols == 0, std::string(name) + ": the elements of a row are not adjacent");
  const std::int64_t stride = rows > 1 ? array.stride(0) : cols;
  require(stride >= cols, std::string(name) + ": rows overlap or run backwards");
  return Rows<typename Array::Scalar>{array.data(), rows, cols, stride};
}

template <typename A, typename B>
void require_same_shape(const Rows<A>& a, const Rows<B>& b, const char* what) {
  require(a.rows == b.rows && a.cols == b.cols, std::string(what) + " differ in shape");
}

inline void require_packable(std::int64_t rows, std::int64_t cols) {
  require(rows > 0 && cols > 0 && cols <= kMostColumns,
          "a packed matrix has at least one row, and rows of 1 to " + std::to_string(kMostColumns) + " weights");
  require(rows <= std::numeric_limits<std::int64_t>::max() / (4 * kMostColumns), "too many rows");
}

}  // namespace penstock
