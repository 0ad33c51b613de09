// The inner loop of the matrix product: R rows of activations times O rows of weights, in registers.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/unroll.h"
#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Rows of weights that will be needed soon: `streams` of them, `stride` bytes apart. They are brought into the second
// level of the cache; into the first is slower. They may lie past the end: a prefetch cannot fault.
struct Ahead {
  const std::uint8_t* data;
  std::int64_t stride;
  int streams;

  void prefetch(std::int64_t offset) const {
    for (int s = 0; s < streams; ++s) __builtin_prefetch(data + s * stride + offset, 0, 2);
  }
};

// A source of weights for Lanes::add, here as they lie in memory, widened as they are loaded: rows `stride` bytes
// apart.
template <VectorBackend V, Dtype kDtype>
struct RawWeights {
  static constexpr int kStepBytes = 16 * item_size(kDtype);
  static constexpr bool kIsF32 = kDtype == Dtype::kF32;

  const std::uint8_t* data;
  std::int64_t stride;

  typename V::Part load(std::int64_t step, int o, int part) const {
    return Load<V, kDtype>::part(data + o * stride + step * kStepBytes + part * (kStepBytes / V::kParts));
  }
  V load_partial(std::int64_t step, int o, int count) const {
    return Load<V, kDtype>::partial(data + o * stride + step * kStepBytes, count);
  }
};

// BF16 weights of which those of two steps lie together: 16 words of 32 bits, the first step's in the low halves, the
// other's in the high ones. So they are widened by one operation.
template <VectorBackend V, GroupBackend<V> G>
struct PairWeights {
  static constexpr int kStepBytes = 32;
  static constexpr bool kIsF32 = false;

  const std::uint8_t* data;
  std::int64_t stride;

  typename V::Part load(std::int64_t step, int o, int part) const {
    const std::uint8_t* p = data + o * stride + step / 2 * 64 + part * (64 / V::kParts);
    return step % 2 == 0 ? G::part_low_halves(p) : G::part_high_halves(p);
  }
  V load_partial(std::int64_t step, int o, int) const {
    V v;
    PENSTOCK_UNROLL
    for (int part = 0; part < V::kParts; ++part) v.part[part] = load(step, o, part);
    return v;
  }
};

// The same as W, kept widened at `wide` as they are used: step after step, the 16 values of each of the O rows.
template <VectorBackend V, class W, int O>
struct KeptWeights {
  static constexpr int kStepBytes = W::kStepBytes;

  W raw;
  float* wide;

  typename V::Part load(std::int64_t step, int o, int part) const {
    const auto v = raw.load(step, o, part);
    V::store_part(wide + (step * O + o) * 16 + part * (16 / V::kParts), v);
    return v;
  }
  V load_partial(std::int64_t step, int o, int count) const {
    const V v = raw.load_partial(step, o, count);
    V::store(wide + (step * O + o) * 16, v);
    return v;
  }
};

// Weights that were kept.
template <VectorBackend V, int O>
struct WideWeights {
  static constexpr int kStepBytes = 64;

  const float* wide;

  typename V::Part load(std::int64_t step, int o, int part) const {
    return V::load_part(wide + (step * O + o) * 16 + part * (16 / V::kParts));
  }
  V load_partial(std::int64_t step, int o, int) const { return V::load(wide + (step * O + o) * 16); }
};

// The 16-lane sums of R x O dot products. A call that is not inlined would keep them in memory.
template <VectorBackend V, int R, int O>
struct Lanes {
  V lane[R][O];

  [[gnu::always_inline]] inline void clear() {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) lane[r][o] = V::zero();
    }
  }
  [[gnu::always_inline]] inline void load(const float* p) {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) lane[r][o] = V::load(p + (r * O + o) * 16);
    }
  }
  [[gnu::always_inline]] inline void store(float* p) const {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) V::store(p + (r * O + o) * 16, lane[r][o]);
    }
  }

  // Adds 16 terms to each: x points at those of the first row.
  template <class W>
  [[gnu::always_inline]] inline void step(const float* x, std::int64_t stride, const W& w, std::int64_t step) {
    PENSTOCK_UNROLL
    for (int p = 0; p < V::kParts; ++p) {
      typename V::Part weight[O];
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) weight[o] = w.load(step, o, p);
      PENSTOCK_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto value = V::load_part(x + r * stride + p * (16 / V::kParts));
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) {
          lane[r][o].part[p] = V::accumulate(weight[o], value, lane[r][o].part[p]);
        }
      }
    }
  }

  // Adds 64 terms to those of output o.
  template <GroupBackend<V> G>
  [[gnu::always_inline]] inline void add_group(const float* x, std::int64_t stride, const typename G::Pairs& w, int o) {
    PENSTOCK_UNROLL
    for (int h = 0; h < 2; ++h) {
      PENSTOCK_UNROLL
      for (int b = 0; b < 2; ++b) {
        PENSTOCK_UNROLL
        for (int p = 0; p < V::kParts; ++p) {
          const auto weight = b == 0 ? G::low_halves(w.part[h][p]) : G::high_halves(w.part[h][p]);
          PENSTOCK_UNROLL
          for (int r = 0; r < R; ++r) {
            const auto value = V::load_part(x + r * stride + 32 * h + 16 * b + p * (16 / V::kParts));
            lane[r][o].part[p] = V::accumulate(weight, value, lane[r][o].part[p]);
          }
        }
      }
    }
  }

  // Adds the last `count` < 16 terms; the other lanes stay as they are.
  template <class W>
  [[gnu::always_inline]] inline void partial_step(const float* x, std::int64_t stride, const W& w, std::int64_t step,
                                                  int count) {
    const auto mask = V::first(count);
    V weight[O];
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) weight[o] = w.load_partial(step, o, count);
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      const V value = V::load(x + r * stride, count);
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        lane[r][o] = V::select(mask, V::fma(weight[o], value, lane[r][o]), lane[r][o]);
      }
    }
  }

  // Adds `terms` terms to each, fetching as many of those ahead.
  template <class W>
  [[gnu::always_inline]] inline void add(const float* x, std::int64_t stride, const W& w, std::int64_t terms,
                                         const Ahead& ahead) {
    constexpr int kStepsPerLine = 64 / W::kStepBytes;
    const std::int64_t steps = terms / 16;
    std::int64_t i = 0;
    for (; i + kStepsPerLine <= steps; i += kStepsPerLine) {
      ahead.prefetch(i * W::kStepBytes);
      PENSTOCK_UNROLL
      for (int j = 0; j < kStepsPerLine; ++j) step(x + (i + j) * 16, stride, w, i + j);
    }
    for (; i < steps; ++i) step(x + i * 16, stride, w, i);
    if (terms % 16 != 0) partial_step(x + i * 16, stride, w, i, static_cast<int>(terms % 16));
  }
};

}  // namespace
}  // namespace penstock
