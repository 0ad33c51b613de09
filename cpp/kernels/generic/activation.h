// The gated activation of SwiGLU (arXiv 2002.05202).
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/exp.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

template <VectorBackend V>
V silu_mul_lanes(V gate, V up) {
  const V denominator = V::add(V::broadcast(1.0f), exp_lanes(V::neg(gate)));
  return V::mul(V::div(gate, denominator), up);
}

template <VectorBackend V>
void silu_mul(const SiluMulArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  for (std::int64_t row = 0; row < a.out.rows; ++row) {
    const float* gate = a.gate.data + row * a.gate.stride;
    const float* up = a.up.data + row * a.up.stride;
    float* out = a.out.data + row * a.out.stride;
    std::int64_t i = begin;
    for (; i + 16 <= end; i += 16) V::store(out + i, silu_mul_lanes(V::load(gate + i), V::load(up + i)));
    if (i < end) {
      const int rest = static_cast<int>(end - i);
      V::store(out + i, silu_mul_lanes(V::load(gate + i, rest), V::load(up + i, rest)), rest);
    }
  }
}

}  // namespace
}  // namespace penstock
