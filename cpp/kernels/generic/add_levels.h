// Sums of int8 vectors, each times a factor of each row (kernels/draft.h).
#pragma once

#include <type_traits>

#include "kernels/draft.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Columns [column, column + count) of all rows; levels become floats once for all rows. A constant count keeps the sums
// in registers.
template <typename Count>
[[gnu::always_inline]] inline void add_levels_at(const AddLevelsArgs& a, std::int64_t column, Count count,
                                                 float* wide) {
  for (std::int64_t k = 0; k < a.factors.cols; ++k) {
    const std::int8_t* levels = a.levels + k * a.out.cols + column;
    for (std::int64_t j = 0; j < count; ++j) wide[k * kSumColumns + j] = static_cast<float>(levels[j]);
  }
  for (std::int64_t r = 0; r < a.out.rows; ++r) {
    const float* factors = row_of(a.factors, r);
    float* out = row_of(a.out, r) + column;
    float sums[kSumColumns];
    for (std::int64_t j = 0; j < count; ++j) sums[j] = out[j];
    for (std::int64_t k = 0; k < a.factors.cols; ++k) {
      for (std::int64_t j = 0; j < count; ++j) sums[j] += factors[k] * wide[k * kSumColumns + j];
    }
    for (std::int64_t j = 0; j < count; ++j) out[j] = sums[j];
  }
}

void add_levels(const AddLevelsArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  float* wide = reinterpret_cast<float*>(scratch.data);
  std::int64_t column = begin;
  for (; column + kSumColumns <= end; column += kSumColumns) {
    add_levels_at(a, column, std::integral_constant<std::int64_t, kSumColumns>(), wide);
  }
  if (column < end) add_levels_at(a, column, end - column, wide);
}

}  // namespace
}  // namespace penstock
