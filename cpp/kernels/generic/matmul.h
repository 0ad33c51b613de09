// Matrix product in the order that the numerics contract fixes.
#pragma once

#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

template <class V, Dtype kDtype>
float dot(const float* x, const std::uint8_t* w, std::int64_t k) {
  V lanes = V::zero();
  std::int64_t i = 0;
  for (; i + 16 <= k; i += 16) lanes = V::fma(Load<V, kDtype>::full(w + i * item_size(kDtype)), V::load(x + i), lanes);
  if (i < k) {
    const int rest = static_cast<int>(k - i);
    const V product = V::fma(Load<V, kDtype>::partial(w + i * item_size(kDtype), rest), V::load(x + i, rest), lanes);
    lanes = V::select(V::first(rest), product, lanes);
  }
  return V::sum(lanes);
}

template <class V, Dtype kDtype>
void matmul_range(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    for (std::int64_t r = 0; r < a.x.rows; ++r) {
      float t = dot<V, kDtype>(a.x.data + r * a.x.stride, a.w + i * a.x.cols * item_size(kDtype), a.x.cols);
      if (a.bias) t = t + a.bias[i];
      float* out = a.out.data + r * a.out.stride + i;
      *out = a.accumulate ? *out + t : t;
    }
  }
}

template <class V>
void matmul(const MatmulArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  switch (a.dtype) {
    case Dtype::kBF16:
      return matmul_range<V, Dtype::kBF16>(a, begin, end);
    case Dtype::kF16:
      return matmul_range<V, Dtype::kF16>(a, begin, end);
    case Dtype::kF32:
      return matmul_range<V, Dtype::kF32>(a, begin, end);
  }
}

}  // namespace
}  // namespace penstock
