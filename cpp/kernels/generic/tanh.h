// tanh in float32, a fixed sequence of IEEE operations.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/exp.h"

namespace penstock {
namespace {

// Below 0.625 an odd polynomial (coefficients: S. Moshier, Cephes, tanhf), beyond it 1 - 2 / (1 + exp(2 |x|)) with the
// sign of x. NaN stays NaN.
template <VectorBackend V>
V tanh_lanes(V x) {
  const auto c = [](float value) { return V::broadcast(value); };
  const V minus = V::neg(x);
  const V size = V::max(minus, x);
  const V square = V::mul(x, x);
  V p = V::fma(square, c(-5.70498872745e-3f), c(2.06390887954e-2f));
  p = V::fma(square, p, c(-5.37397155531e-2f));
  p = V::fma(square, p, c(1.33314422036e-1f));
  p = V::fma(square, p, c(-3.33332819422e-1f));
  const V near = V::fma(V::mul(p, square), x, x);
  const V beyond = V::sub(c(1.0f), V::div(c(2.0f), V::add(c(1.0f), exp_lanes(V::add(size, size)))));
  const V far = V::select(V::less(x, V::zero()), V::neg(beyond), beyond);
  return V::select(V::less(size, c(0.625f)), near, far);
}

}  // namespace
}  // namespace penstock
