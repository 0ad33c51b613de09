// The gated activations of SwiGLU and GEGLU (arXiv 2002.05202).
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/columns.h"
#include "kernels/generic/exp.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// What the sigmoid is taken of. For GELU the coefficients are 2 sqrt(2 / pi) and 0.044715 times that.
template <VectorBackend V, Activation kActivation>
V gate_argument(V gate) {
  if constexpr (kActivation == Activation::kSilu) return gate;
  return V::mul(gate, V::fma(V::mul(gate, gate), V::broadcast(0.07135482f), V::broadcast(1.5957691f)));
}

template <VectorBackend V, Activation kActivation>
void gated_columns(const GatedArgs& a, std::int64_t begin, std::int64_t end) {
  for_columns(a.out, begin, end, [&](std::int64_t row, std::int64_t column, auto... count) {
    const V gate = V::load(row_of(a.gate, row) + column, count...);
    const V denominator = V::add(V::broadcast(1.0f), exp_lanes(V::neg(gate_argument<V, kActivation>(gate))));
    const V up = V::load(row_of(a.up, row) + column, count...);
    V::store(row_of(a.out, row) + column, V::mul(V::div(gate, denominator), up), count...);
  });
}

template <VectorBackend V>
void gated(const GatedArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  if (a.activation == Activation::kSilu) return gated_columns<V, Activation::kSilu>(a, begin, end);
  return gated_columns<V, Activation::kGeluTanh>(a, begin, end);
}

}  // namespace
}  // namespace penstock
