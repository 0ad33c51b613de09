// The inner loop of the matrix product: R rows of activations times O rows of weights, in registers.
#pragma once

#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

#define PENSTOCK_UNROLL _Pragma("GCC unroll 16")

// Weights as they lie in memory, widened as they are loaded: O rows, `stride` bytes apart.
template <class V, Dtype kDtype>
struct RawWeights {
  static constexpr std::int64_t kItem = item_size(kDtype);
  static constexpr int kStepsPerLine = 64 / (16 * kItem);
  static constexpr std::int64_t kPrefetchBytes = 2048;

  const std::uint8_t* data;
  std::int64_t stride;

  template <int O>
  V load(std::int64_t step, int o) const {
    return Load<V, kDtype>::full(data + o * stride + step * 16 * kItem);
  }
  template <int O>
  V load(std::int64_t step, int o, int count) const {
    return Load<V, kDtype>::partial(data + o * stride + step * 16 * kItem, count);
  }
  // The cache line of each row that is needed a while after `step`, into the second level (into the first is slower). It
  // may lie past the end: a prefetch cannot fault.
  template <int O>
  void prefetch(std::int64_t step) const {
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) __builtin_prefetch(data + o * stride + step * 16 * kItem + kPrefetchBytes, 0, 2);
  }
};

// The same, kept in a tile as they pass, while those at `next` come nearer.
template <class V, Dtype kDtype>
struct KeptWeights {
  static constexpr int kStepsPerLine = RawWeights<V, kDtype>::kStepsPerLine;

  RawWeights<V, kDtype> raw;
  float* tile;
  const std::uint8_t* next;

  template <int O>
  V load(std::int64_t step, int o) const {
    const V v = raw.template load<O>(step, o);
    V::store(tile + (step * O + o) * 16, v);
    return v;
  }
  template <int O>
  void prefetch(std::int64_t step) const {
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) __builtin_prefetch(next + o * raw.stride + step * 16 * raw.kItem, 0, 2);
  }
};

// A tile of widened weights: step after step, the 16 values of each of the O rows.
template <class V>
struct WideWeights {
  static constexpr int kStepsPerLine = 1;

  const float* tile;

  template <int O>
  V load(std::int64_t step, int o) const {
    return V::load(tile + (step * O + o) * 16);
  }
  template <int O>
  void prefetch(std::int64_t) const {}
};

// The 16-lane sums of R x O dot products.
template <class V, int R, int O>
struct Lanes {
  V lane[R][O];

  void clear() {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) lane[r][o] = V::zero();
    }
  }
  void load(const float* p) {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) lane[r][o] = V::load(p + (r * O + o) * 16);
    }
  }
  void store(float* p) const {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) V::store(p + (r * O + o) * 16, lane[r][o]);
    }
  }

  // Adds 16 terms to each: x points at those of the first row.
  template <class W>
  void step(const float* x, std::int64_t stride, const W& w, std::int64_t step) {
    V weight[O];
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) weight[o] = w.template load<O>(step, o);
    PENSTOCK_UNROLL
    for (int p = 0; p < V::kParts; ++p) {
      PENSTOCK_UNROLL
      for (int r = 0; r < R; ++r) {
        const V value = V::load(x + r * stride);
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) {
          lane[r][o].part[p] = V::fma(weight[o].part[p], value.part[p], lane[r][o].part[p]);
        }
      }
    }
  }
  // Adds 16 * steps terms.
  template <class W>
  void accumulate(const float* x, std::int64_t stride, const W& w, std::int64_t steps) {
    std::int64_t i = 0;
    for (; i + W::kStepsPerLine <= steps; i += W::kStepsPerLine) {
      w.template prefetch<O>(i);
      PENSTOCK_UNROLL
      for (int j = 0; j < W::kStepsPerLine; ++j) step(x + (i + j) * 16, stride, w, i + j);
    }
    for (; i < steps; ++i) step(x + i * 16, stride, w, i);
  }

  // Adds the last `count` < 16 terms; the other lanes stay as they are.
  template <class W>
  void partial_step(const float* x, std::int64_t stride, const W& w, std::int64_t step, int count) {
    const auto mask = V::first(count);
    V weight[O];
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) weight[o] = w.template load<O>(step, o, count);
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      const V value = V::load(x + r * stride, count);
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        lane[r][o] = V::select(mask, V::fma(weight[o], value, lane[r][o]), lane[r][o]);
      }
    }
  }
};

}  // namespace
}  // namespace penstock
