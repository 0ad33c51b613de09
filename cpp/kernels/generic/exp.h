// exp in float32, a fixed sequence of IEEE operations.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// x = k log 2 + r with |r| <= log(2) / 2; exp(r) by its Taylor polynomial of degree 7, whose remainder is below
// 2^-27 of it; times 2^k in two steps, so that results beyond the normal range are rounded once.
// Error below 0.94 units in the last place, over all floats. exp(-inf) = 0, exp(+inf) = inf, NaN stays NaN.
template <VectorBackend V>
V exp_lanes(V x) {
  const auto c = [](float value) { return V::broadcast(value); };
  // Beyond these bounds the result is 0 or inf anyway. The order of operands lets NaN pass here and stops it at k.
  const V bounded = V::min(c(89.0f), V::max(c(-104.0f), x));
  const V k = V::max(V::round(V::mul(bounded, c(0x1.715476p+0f))), c(-151.0f));
  const V minus_k = V::neg(k);
  const V r = V::fma(minus_k, c(-0x1.05c61p-29f), V::fma(minus_k, c(0x1.62e43p-1f), bounded));
  V p = V::fma(r, c(1.0f / 5040), c(1.0f / 720));
  p = V::fma(r, p, c(1.0f / 120));
  p = V::fma(r, p, c(1.0f / 24));
  p = V::fma(r, p, c(1.0f / 6));
  p = V::fma(r, p, c(0.5f));
  p = V::fma(r, p, c(1.0f));
  p = V::fma(r, p, c(1.0f));
  const V half = V::round(V::mul(k, c(0.5f)));
  return V::mul(V::mul(p, V::pow2(half)), V::pow2(V::sub(k, half)));
}

template <VectorBackend V>
void exp(const ExpArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  std::int64_t i = begin;
  for (; i + 16 <= end; i += 16) V::store(a.out + i, exp_lanes(V::load(a.x + i)));
  if (i < end) {
    const int rest = static_cast<int>(end - i);
    V::store(a.out + i, exp_lanes(V::load(a.x + i, rest)), rest);
  }
}

}  // namespace
}  // namespace penstock
