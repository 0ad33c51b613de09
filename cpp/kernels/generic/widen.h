// Exact widening of a run of BF16, F16 or F32 values to float32.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

constexpr std::int64_t item_size(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

// The load of each dtype: 16 values, or the first `count` of 16 with +0 in the other lanes. `p` may be at any address.
template <VectorBackend V, Dtype kDtype>
struct Load {
  static V full(const std::uint8_t* p) {
    if constexpr (kDtype == Dtype::kBF16) return V::load_bf16(p);
    if constexpr (kDtype == Dtype::kF16) return V::load_f16(p);
    if constexpr (kDtype == Dtype::kF32) return V::load_f32(p);
  }
  static auto part(const std::uint8_t* p) {  // as much as a V::Part holds
    if constexpr (kDtype == Dtype::kBF16) return V::part_bf16(p);
    if constexpr (kDtype == Dtype::kF16) return V::part_f16(p);
    if constexpr (kDtype == Dtype::kF32) return V::part_f32(p);
  }
  static V partial(const std::uint8_t* p, int count) {
    if constexpr (kDtype == Dtype::kBF16) return V::load_bf16(p, count);
    if constexpr (kDtype == Dtype::kF16) return V::load_f16(p, count);
    if constexpr (kDtype == Dtype::kF32) return V::load_f32(p, count);
  }
};

template <VectorBackend V, Dtype kDtype>
void widen_run(const std::uint8_t* src, std::int64_t n, float* out) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) V::store(out + i, Load<V, kDtype>::full(src + i * item_size(kDtype)));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    V::store(out + i, Load<V, kDtype>::partial(src + i * item_size(kDtype), rest), rest);
  }
}

template <VectorBackend V>
void widen(const WidenArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::uint8_t* src = a.src + begin * item_size(a.dtype);
  switch (a.dtype) {
    case Dtype::kBF16:
      return widen_run<V, Dtype::kBF16>(src, end - begin, a.out + begin);
    case Dtype::kF16:
      return widen_run<V, Dtype::kF16>(src, end - begin, a.out + begin);
    case Dtype::kF32:
      return widen_run<V, Dtype::kF32>(src, end - begin, a.out + begin);
  }
}

}  // namespace
}  // namespace penstock
