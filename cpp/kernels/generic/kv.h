// The layout of the KV cache, and writing to it.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// The vector of `slot` and kv head `head`, in the plane (keys or values) at byte `plane` of a block.
std::uint8_t* kv_entry(const KvLayer& kv, std::int64_t plane, std::int64_t head, std::int64_t slot) {
  const std::int64_t entry = head * kv.block_slots + slot % kv.block_slots;
  return kv.blocks[slot / kv.block_slots] + plane + entry * kv.head_dim * item_size(kv.dtype);
}

template <VectorBackend V>
void round_run(const float* src, std::int64_t n, Dtype dtype, std::uint8_t* out) {
  const std::int64_t size = item_size(dtype);
  for (std::int64_t i = 0; i < n; i += 16) {
    const int count = n - i < 16 ? static_cast<int>(n - i) : 16;
    const V v = V::load(src + i, count);
    if (dtype == Dtype::kBF16) V::store_bf16(out + i * size, v, count);
    if (dtype == Dtype::kF32) V::store_f32(out + i * size, v, count);
  }
}

template <VectorBackend V>
void store_kv(const StoreKvArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const KvLayer& kv = a.kv;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t head = 0; head < kv.kv_heads; ++head) {
      const std::int64_t column = head * kv.head_dim;
      const float* k = a.k.data + row * a.k.stride + column;
      const float* v = a.v.data + row * a.v.stride + column;
      round_run<V>(k, kv.head_dim, kv.dtype, kv_entry(kv, kv.key_offset, head, a.slots[row]));
      round_run<V>(v, kv.head_dim, kv.dtype, kv_entry(kv, kv.value_offset, head, a.slots[row]));
    }
  }
}

}  // namespace
}  // namespace penstock
