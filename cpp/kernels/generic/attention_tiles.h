// The two inner products of attention, by register tiles of up to four query vectors.
#pragma once

#include "kernels/generic/attention_runs.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/unroll.h"
#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// A register tile of dot products has so many accumulators, each a register: half of what there are.
template <VectorBackend V>
constexpr int kAccumulators = V::kRegisters / 2;

// acc[i * acc_stride + j] = the 16 lanes of dot(q[i], key j). One part of the lanes after another, so that those of the
// whole tile fit in the registers.
template <VectorBackend V, int kQueries, int kKeys, Dtype kDtype>
[[gnu::always_inline]] inline void dot_tile(const float* const* q, const Run& keys, std::int64_t dim, V* acc,
                                            int acc_stride) {
  const auto at = [&](int j, std::int64_t d) { return keys.data + j * keys.stride + d * item_size(kDtype); };
  V lanes[kQueries][kKeys];
  PENSTOCK_UNROLL
  for (int p = 0; p < V::kParts; ++p) {
    PENSTOCK_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      PENSTOCK_UNROLL
      for (int j = 0; j < kKeys; ++j) lanes[i][j].part[p] = V::zero().part[p];
    }
    for (std::int64_t d = 0; d + 16 <= dim; d += 16) {
      typename V::Part x[kQueries];
      PENSTOCK_UNROLL
      for (int i = 0; i < kQueries; ++i) x[i] = V::pinned(V::load(q[i] + d).part[p]);
      PENSTOCK_UNROLL
      for (int j = 0; j < kKeys; ++j) {
        const auto key = Load<V, kDtype>::full(at(j, d)).part[p];
        PENSTOCK_UNROLL
        for (int i = 0; i < kQueries; ++i) lanes[i][j].part[p] = V::fma(x[i], key, lanes[i][j].part[p]);
      }
    }
  }
  const int rest = static_cast<int>(dim % 16);
  if (rest > 0) {
    PENSTOCK_UNROLL
    for (int j = 0; j < kKeys; ++j) {
      const V key = Load<V, kDtype>::partial(at(j, dim - rest), rest);
      PENSTOCK_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const V sum = V::fma(V::load(q[i] + dim - rest, rest), key, lanes[i][j]);
        lanes[i][j] = V::select(V::first(rest), sum, lanes[i][j]);
      }
    }
  }
  PENSTOCK_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PENSTOCK_UNROLL
    for (int j = 0; j < kKeys; ++j) acc[i * acc_stride + j] = lanes[i][j];
  }
}

// scores[i][at .. at + 16 / kQueries) = dot(q[i], key) * scale for the first 16 / kQueries keys of a run.
template <VectorBackend V, int kQueries, Dtype kDtype>
void score_tile(const float* const* q, const Run& keys, std::int64_t dim, float scale, float* const* scores,
                std::int64_t at) {
  constexpr int kKeys = 16 / kQueries;
  constexpr int kTileKeys = kAccumulators<V> / kQueries;
  keys.prefetch(0, kKeys * keys.stride);
  V acc[16];
  PENSTOCK_UNROLL
  for (int j = 0; j < kKeys; j += kTileKeys) {
    dot_tile<V, kQueries, kTileKeys, kDtype>(q, keys.from(j), dim, acc + j, kKeys);
  }
  alignas(64) float sums[16];
  V::store(sums, V::mul(V::sums(acc), V::broadcast(scale)));
  PENSTOCK_UNROLL
  for (int i = 0; i < kQueries; ++i) __builtin_memcpy(scores[i] + at, sums + i * kKeys, kKeys * sizeof(float));
}

// out[i][d .. d + 16 kVecs) += w[i][p] * value p by FMA, p ascending from 0 to count.
template <VectorBackend V, int kQueries, int kVecs, Dtype kDtype>
void value_tile(const float* const* w, std::int64_t at, const Run& values, int count, float* const* out,
                std::int64_t d) {
  V acc[kQueries][kVecs];
  PENSTOCK_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PENSTOCK_UNROLL
    for (int c = 0; c < kVecs; ++c) acc[i][c] = V::load(out[i] + d + 16 * c);
  }
  for (int p = 0; p < count; ++p) {
    const Run value_p = values.from(p);
    value_p.prefetch(d * item_size(kDtype), (d + 16 * kVecs) * item_size(kDtype));
    V value[kVecs];
    PENSTOCK_UNROLL
    for (int c = 0; c < kVecs; ++c) value[c] = Load<V, kDtype>::full(value_p.data + (d + 16 * c) * item_size(kDtype));
    PENSTOCK_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const V weight = V::broadcast(w[i][at + p]);
      PENSTOCK_UNROLL
      for (int c = 0; c < kVecs; ++c) acc[i][c] = V::fma(weight, value[c], acc[i][c]);
    }
  }
  PENSTOCK_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PENSTOCK_UNROLL
    for (int c = 0; c < kVecs; ++c) V::store(out[i] + d + 16 * c, acc[i][c]);
  }
}

// The same for the last `rest` < 16 dimensions.
template <VectorBackend V, int kQueries, Dtype kDtype>
void value_rest(const float* const* w, std::int64_t at, const Run& values, int count, float* const* out, std::int64_t d,
                int rest) {
  for (int i = 0; i < kQueries; ++i) {
    V acc = V::load(out[i] + d, rest);
    for (int p = 0; p < count; ++p) {
      const V value = Load<V, kDtype>::partial(values.from(p).data + d * item_size(kDtype), rest);
      acc = V::fma(V::broadcast(w[i][at + p]), value, acc);
    }
    V::store(out[i] + d, acc, rest);
  }
}

}  // namespace
}  // namespace penstock
