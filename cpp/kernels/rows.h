// Rows of an array, at any distance from one another. Must hold nothing that emits code, as kernels.h.
#pragma once

#include <cstdint>

namespace penstock {

// Rows of `cols` adjacent elements; row r starts at data + r * stride.
template <typename T>
struct Rows {
  T* data;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t stride;
};

}  // namespace penstock
