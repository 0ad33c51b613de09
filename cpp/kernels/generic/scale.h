// Multipliers, divisors and caps of rows, and scaled sums of rows.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/columns.h"
#include "kernels/generic/tanh.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118).
template <VectorBackend V>
V capped(V x, float cap) {
  return V::mul(tanh_lanes(V::div(x, V::broadcast(cap))), V::broadcast(cap));
}

template <VectorBackend V>
void scale(const ScaleArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  for_columns(a.x, begin, end, [&](std::int64_t row, std::int64_t column, auto... count) {
    float* x = row_of(a.x, row) + column;
    V value = V::mul(V::load(x, count...), V::broadcast(a.times));
    value = V::div(value, V::broadcast(a.divisor));
    V::store(x, a.cap == 0.0f ? value : capped(value, a.cap), count...);
  });
}

template <VectorBackend V>
void add_rows(const AddRowsArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  for_columns({a.out.data, a.x.rows, a.out.cols, a.out.stride}, begin, end,
              [&](std::int64_t row, std::int64_t column, auto... count) {
                float* out = row_of(a.out, a.at == nullptr ? row : a.at[row]) + column;
                const V product = V::mul(V::broadcast(a.factors[row]), V::load(row_of(a.x, row) + column, count...));
                V::store(out, V::add(V::load(out, count...), product), count...);
              });
}

}  // namespace
}  // namespace penstock
