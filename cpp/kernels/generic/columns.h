// Columns of rows, sixteen at a time.
#pragma once

#include <cstdint>

#include "kernels/rows.h"

namespace penstock {
namespace {

template <class T>
T* row_of(const Rows<T>& rows, std::int64_t row) {
  return rows.data + row * rows.stride;
}

// Calls f(row, column) for sixteen columns from each, and f(row, column, count) for those that are left.
template <class F>
void for_columns(const Rows<float>& rows, std::int64_t begin, std::int64_t end, F f) {
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    std::int64_t i = begin;
    for (; i + 16 <= end; i += 16) f(row, i);
    if (i < end) f(row, i, static_cast<int>(end - i));
  }
}

}  // namespace
}  // namespace penstock
