// The two inner products of attention, by register tiles of up to four query vectors.
#pragma once

#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Keys or values of one head at consecutive logical positions.
struct Run {
  const std::uint8_t* data;
  std::int64_t stride;  // bytes from one vector to the next
  Dtype dtype;
};

// The numbers of query vectors and keys that a register tile of dot products holds: sixteen accumulators where there
// are 32 registers of 16 lanes, else four.
template <class V>
constexpr int kTileSide = V::kParts == 1 ? 4 : 2;

// acc[i * acc_stride + j] = the 16 lanes of dot(q[i], key j).
template <class V, int kQueries, int kKeys, Dtype kDtype>
void dot_tile(const float* const* q, const std::uint8_t* keys, std::int64_t stride, std::int64_t dim, V* acc,
              int acc_stride) {
  V lanes[kQueries][kKeys];
  for (int i = 0; i < kQueries; ++i) {
    for (int j = 0; j < kKeys; ++j) lanes[i][j] = V::zero();
  }
  std::int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    V x[kQueries];
    for (int i = 0; i < kQueries; ++i) x[i] = V::load(q[i] + d);
    for (int j = 0; j < kKeys; ++j) {
      const V key = Load<V, kDtype>::full(keys + j * stride + d * item_size(kDtype));
      for (int i = 0; i < kQueries; ++i) lanes[i][j] = V::fma(x[i], key, lanes[i][j]);
    }
  }
  if (d < dim) {
    const int rest = static_cast<int>(dim - d);
    const auto used = V::first(rest);
    for (int j = 0; j < kKeys; ++j) {
      const V key = Load<V, kDtype>::partial(keys + j * stride + d * item_size(kDtype), rest);
      for (int i = 0; i < kQueries; ++i) {
        lanes[i][j] = V::select(used, V::fma(V::load(q[i] + d, rest), key, lanes[i][j]), lanes[i][j]);
      }
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int j = 0; j < kKeys; ++j) acc[i * acc_stride + j] = lanes[i][j];
  }
}

// scores[i][at .. at + 16 / kQueries) = dot(q[i], key) * scale for the first 16 / kQueries keys of a run.
template <class V, int kQueries, Dtype kDtype>
void score_tile(const float* const* q, const std::uint8_t* keys, std::int64_t stride, std::int64_t dim, float scale,
                float* const* scores, std::int64_t at) {
  constexpr int kKeys = 16 / kQueries;
  constexpr int kTileQueries = kQueries < kTileSide<V> ? kQueries : kTileSide<V>;
  constexpr int kTileKeys = kTileSide<V> * kTileSide<V> / kTileQueries;
  V acc[16];
  for (int i = 0; i < kQueries; i += kTileQueries) {
    for (int j = 0; j < kKeys; j += kTileKeys) {
      dot_tile<V, kTileQueries, kTileKeys, kDtype>(q + i, keys + j * stride, stride, dim, acc + i * kKeys + j, kKeys);
    }
  }
  alignas(64) float sums[16];
  V::store(sums, V::mul(V::sums(acc), V::broadcast(scale)));
  for (int i = 0; i < kQueries; ++i) __builtin_memcpy(scores[i] + at, sums + i * kKeys, kKeys * sizeof(float));
}

// out[i][0 .. 16 kVecs) += w[i][at + p] * value p by FMA, p ascending from 0 to count; `rest` lanes if it is not 16.
template <class V, int kQueries, int kVecs, Dtype kDtype>
void value_tile(const float* const* w, std::int64_t at, const std::uint8_t* values, std::int64_t stride, int count,
                float* const* out, std::int64_t d, int rest = 16) {
  V acc[kQueries][kVecs];
  for (int i = 0; i < kQueries; ++i) {
    for (int c = 0; c < kVecs; ++c) {
      acc[i][c] = kVecs > 1 ? V::load(out[i] + d + 16 * c) : V::load(out[i] + d, rest);
    }
  }
  const std::uint8_t* p = values + d * item_size(kDtype);
  for (int key = 0; key < count; ++key, p += stride) {
    V v[kVecs];
    for (int c = 0; c < kVecs; ++c) {
      const std::uint8_t* from = p + 16 * c * item_size(kDtype);
      v[c] = kVecs > 1 || rest == 16 ? Load<V, kDtype>::full(from) : Load<V, kDtype>::partial(from, rest);
    }
    for (int i = 0; i < kQueries; ++i) {
      const V weight = V::broadcast(w[i][at + key]);
      for (int c = 0; c < kVecs; ++c) acc[i][c] = V::fma(weight, v[c], acc[i][c]);
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int c = 0; c < kVecs; ++c) {
      if (kVecs > 1)
        V::store(out[i] + d + 16 * c, acc[i][c]);
      else
        V::store(out[i] + d, acc[i][c], rest);
    }
  }
}

}  // namespace
}  // namespace penstock
