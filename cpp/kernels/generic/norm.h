// Root-mean-square normalisation (arXiv 1910.07467).
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Sixteen copies of 1 / sqrt(dot(x, x) / n + eps).
template <VectorBackend V>
V inverse_rms(const float* x, std::int64_t n, float eps) {
  V lanes = V::zero();
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const V v = V::load(x + i);
    lanes = V::fma(v, v, lanes);
  }
  if (i < n) {
    const V v = V::load(x + i, static_cast<int>(n - i));
    lanes = V::select(V::first(static_cast<int>(n - i)), V::fma(v, v, lanes), lanes);
  }
  const float mean = V::sum(lanes) / static_cast<float>(n);
  return V::div(V::broadcast(1.0f), V::sqrt(V::broadcast(mean + eps)));
}

template <VectorBackend V>
void rms_norm(const RmsNormArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::int64_t n = a.x.cols;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* x = a.x.data + row * a.x.stride;
    float* out = a.out.data + row * a.out.stride;
    const V inverse = inverse_rms<V>(x, n, a.eps);
    std::int64_t i = 0;
    for (; i + 16 <= n; i += 16) V::store(out + i, V::mul(V::load(a.weight + i), V::mul(V::load(x + i), inverse)));
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      V::store(out + i, V::mul(V::load(a.weight + i, rest), V::mul(V::load(x + i, rest), inverse)), rest);
    }
  }
}

}  // namespace
}  // namespace penstock
