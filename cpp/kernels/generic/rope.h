// Rotary position embedding (arXiv 2104.09864), the first half of what is rotated of a head paired with its second.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// x[i] = x[i] c - x[i + half] s and x[i + half] = x[i + half] c + x[i] s, for i < half.
template <VectorBackend V>
void rotate_head(float* x, const float* cos, const float* sin, std::int64_t half) {
  for (std::int64_t i = 0; i < half; i += 16) {
    const int count = half - i < 16 ? static_cast<int>(half - i) : 16;
    const V c = V::load(cos + i, count);
    const V s = V::load(sin + i, count);
    const V first = V::load(x + i, count);
    const V second = V::load(x + half + i, count);
    V::store(x + i, V::sub(V::mul(first, c), V::mul(second, s)), count);
    V::store(x + half + i, V::add(V::mul(second, c), V::mul(first, s)), count);
  }
}

template <VectorBackend V>
void rope(const RopeArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::int64_t half = a.rotary / 2;
  for (std::int64_t row = begin; row < end; ++row) {
    float* x = a.x.data + row * a.x.stride;
    for (std::int64_t head = 0; head < a.heads; ++head) {
      rotate_head<V>(x + head * a.dim, a.cos + row * half, a.sin + row * half, half);
    }
  }
}

}  // namespace
}  // namespace penstock
