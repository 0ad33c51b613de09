// The matrix product in the order that the numerics contract fixes: 16 lanes, k ascending, one tree.
//
// Few rows: the weights stream from memory through the registers once. More rows: a block of the weights is widened
// into the first-level cache and applied to every row; the rows' lanes rest in scratch between blocks of k.
#pragma once

#include "kernels/generic/matmul_tile.h"
#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Calls f.template operator()<n>() for n == count, 1 <= count <= N.
template <int N, class F>
void with_constant(int count, F f) {
  if constexpr (N > 1) {
    if (count < N) return with_constant<N - 1>(count, f);
  }
  f.template operator()<N>();
}

inline void emit(const MatmulArgs& a, std::int64_t row, std::int64_t output, float dot) {
  if (a.bias) dot = dot + a.bias[output];
  float* out = a.out.data + row * a.out.stride + output;
  *out = a.accumulate ? *out + dot : dot;
}

template <class V, Dtype kDtype>
struct Matmul {
  static constexpr int kRows = V::kTileRows;
  static constexpr int kOutputs = V::kTileOutputs;
  static constexpr std::int64_t kTileFloats = kMatmulBlock * kOutputs;
  static constexpr int kStepBytes = RawWeights<V, kDtype>::kStepBytes;
  static constexpr std::int64_t kBlockBytes = kMatmulBlock * item_size(kDtype);
  static constexpr std::int64_t kAheadBytes = 2048;

  const MatmulArgs& a;
  const std::int64_t row_bytes = a.k * item_size(kDtype);

  // Rows `first`, `first` + distance, ... of the weights.
  RawWeights<V, kDtype> raw(std::int64_t first, std::int64_t distance) const {
    return {a.w + first * row_bytes, distance * row_bytes};
  }

  // R rows times outputs first, first + distance, ... (O of them), straight from memory.
  template <int R, int O>
  void direct_tile(std::int64_t first, std::int64_t distance) const {
    const RawWeights<V, kDtype> w = raw(first, distance);
    const std::int64_t steps = a.k / 16;
    Lanes<V, R, O> lanes;
    lanes.clear();
    lanes.template accumulate<kStepBytes>(a.x, a.row_stride, w, steps, {w.data + kAheadBytes, w.stride, O});
    if (a.k % 16 != 0) lanes.partial_step(a.x + steps * 16, a.row_stride, w, steps, static_cast<int>(a.k % 16));
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) emit(a, r, first + o * distance, V::sum(lanes.lane[r][o]));
    }
  }

  // Each of the O streams runs through adjacent rows of weights, so that prefetching runs on from row to row.
  void direct(std::int64_t begin, std::int64_t end) const {
    const std::int64_t distance = (end - begin) / kOutputs;
    with_constant<kRows>(static_cast<int>(a.rows), [&]<int R>() {
      for (std::int64_t i = begin; i < begin + distance; ++i) direct_tile<R, kOutputs>(i, distance);
      for (std::int64_t i = begin + kOutputs * distance; i < end; ++i) direct_tile<R, 1>(i, 0);
    });
  }

  // Adds 16 * steps terms, of which those of x start at `x`, to the lanes of R rows at `sums`.
  template <int R, int O, class W>
  void add_terms(const float* x, const W& w, std::int64_t steps, const Ahead& ahead, bool first, float* sums) const {
    Lanes<V, R, O> lanes;
    first ? lanes.clear() : lanes.load(sums);
    lanes.template accumulate<kStepBytes>(x, a.row_stride, w, steps, ahead);
    lanes.store(sums);
  }

  // Adds block `block` of k to the lanes of all rows and the O outputs of `w`, whose next tile is at `next`.
  template <int O>
  void block_tile(std::int64_t block, const RawWeights<V, kDtype>& w, const std::uint8_t* next, float* tile,
                  float* sums) const {
    const std::int64_t start = block * kMatmulBlock;
    const std::int64_t terms = a.k - start < kMatmulBlock ? a.k - start : kMatmulBlock;
    const std::int64_t steps = (terms + 15) / 16;
    const float* x = a.x + block * a.block_stride;
    std::int64_t row = 0;
    Ahead ahead{next, w.stride, O};
    if (terms % 16 == 0) {
      add_terms<kRows, O>(x, KeptWeights<V, kDtype>{w, tile}, steps, ahead, block == 0, sums);
      row = kRows;
      ahead.streams = 0;
    } else {
      widen_tile<O>(w, terms, tile);
    }
    for (; row < a.rows; row += kRows) {
      const int rows = a.rows - row < kRows ? static_cast<int>(a.rows - row) : kRows;
      with_constant<kRows>(rows, [&]<int R>() {
        add_terms<R, O>(x + row * a.row_stride, WideWeights<V>{tile}, steps, ahead, block == 0, sums + row * O * 16);
      });
    }
  }

  // Widens `terms` terms of O rows of weights into a tile; pads with -0, which no sum notices.
  template <int O>
  static void widen_tile(const RawWeights<V, kDtype>& w, std::int64_t terms, float* tile) {
    const std::int64_t steps = terms / 16;
    for (std::int64_t i = 0; i < steps; ++i) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) V::store(tile + (i * O + o) * 16, w.template load<O>(i, o));
    }
    const int rest = static_cast<int>(terms % 16);
    for (int o = 0; o < O; ++o) {
      const V v = V::select(V::first(rest), w.template load<O>(steps, o, rest), V::broadcast(-0.0f));
      V::store(tile + (steps * O + o) * 16, v);
    }
  }

  template <int O>
  void emit_tile(std::int64_t i, std::int64_t distance, const float* sums) const {
    for (std::int64_t row = 0; row < a.rows; ++row) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) emit(a, row, i + o * distance, V::sum(V::load(sums + (row * O + o) * 16)));
    }
  }

  // All rows times outputs i + o * distance for i in [begin, begin + count) and o < O.
  template <int O>
  void blocked(std::int64_t begin, std::int64_t count, std::int64_t distance, float* tile) const {
    float* sums = tile + kTileFloats;
    const std::int64_t lanes = a.rows * O * 16;
    for (std::int64_t block = 0; block * kMatmulBlock < a.k; ++block) {
      RawWeights<V, kDtype> w = raw(begin, distance);
      w.data += block * kBlockBytes;
      const std::uint8_t* next_block = w.data + kBlockBytes;
      for (std::int64_t i = 0; i < count; ++i, w.data += row_bytes) {
        const std::uint8_t* next = i + 1 < count ? w.data + row_bytes : next_block;
        block_tile<O>(block, w, next, tile, sums + i * lanes);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) emit_tile<O>(begin + i, distance, sums + i * lanes);
  }

  void run(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    if (a.rows <= kRows) return direct(begin, end);
    float* tile = reinterpret_cast<float*>(scratch.data);
    const std::int64_t distance = (end - begin) / kOutputs;
    const std::int64_t room = static_cast<std::int64_t>(scratch.bytes / sizeof(float)) - kTileFloats;
    std::int64_t most = room / (a.rows * kOutputs * 16);
    if (most > MO) most = MO;
    for (std::int64_t i = 0; i < distance; i += most) {
      blocked<kOutputs>(begin + i, distance - i < most ? distance - i : most, distance, tile);
    }
    for (std::int64_t i = begin + kOutputs * distance; i < end; ++i) blocked<1>(i, 1, 0, tile);
  }
};

template <class V>
void matmul(const MatmulArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  switch (a.dtype) {
    case Dtype::kBF16:
      return Matmul<V, Dtype::kBF16>{a}.run(begin, end, scratch);
    case Dtype::kF16:
      return Matmul<V, Dtype::kF16>{a}.run(begin, end, scratch);
    case Dtype::kF32:
      return Matmul<V, Dtype::kF32>{a}.run(begin, end, scratch);
  }
}

}  // namespace
}  // namespace penstock
