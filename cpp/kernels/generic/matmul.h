// The matrix product in the order that the numerics contract fixes: 16 lanes, k ascending, one tree.
//
// Few rows: the weights stream past them once. More rows: block after block of k, a tile of rows stays in the first
// level of the cache while the block's weights stream past it, from memory for the first tile and from the second level
// for the others; the lanes rest in scratch between blocks. Weights are widened in registers as they are used; where
// that costs much, the first tile of many keeps them.
#pragma once

#include "kernels/generic/backend.h"
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

// Ends a dot product.
template <class Args>
void emit(const Args& a, std::int64_t row, std::int64_t output, float dot) {
  if (a.bias) dot = dot + a.bias[output];
  float* out = a.out.data + row * a.out.stride + output;
  *out = a.accumulate ? *out + dot : dot;
}

// W is the source of weights.
template <VectorBackend V, class W>
struct Matmul {
  static constexpr int kRows = V::kTileRows;
  static constexpr int kOutputs = V::kTileOutputs;
  static constexpr std::int64_t kMostOutputs = 32;   // the weights of a block take 64 KB as BF16
  static constexpr std::int64_t kBlockTerms = 1024;  // a tile's rows take 24 KB on AVX-512
  static constexpr bool kWidensOnce = V::kWidensOnce && !W::kIsF32;
  static constexpr std::int64_t kWideRows = 16;  // so many rows repay the stores
  static constexpr std::int64_t kAheadBytes = 2048;
  static constexpr std::int64_t kItem = W::kStepBytes / 16;

  const MatmulArgs& a;
  const std::int64_t row_bytes;  // from one row of weights to the next
  const bool widens_once = kWidensOnce && a.x.rows >= kWideRows;

  // Rows `first`, `first` + distance, ... of the weights.
  W weights(std::int64_t first, std::int64_t distance) const { return {a.w + first * row_bytes, distance * row_bytes}; }

  // R rows times outputs first, first + distance, ... (O of them), straight from memory.
  template <int R, int O>
  void direct_tile(std::int64_t first, std::int64_t distance) const {
    const W w = weights(first, distance);
    Lanes<V, R, O> lanes;
    lanes.clear();
    lanes.add(a.x.data, a.x.stride, w, a.x.cols, {w.data + kAheadBytes, w.stride, O});
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) emit(a, r, first + o * distance, V::sum(lanes.lane[r][o]));
    }
  }

  // Each of the O streams runs through adjacent rows of weights, so that prefetching runs on from row to row.
  void direct(std::int64_t begin, std::int64_t end) const {
    const std::int64_t distance = (end - begin) / kOutputs;
    with_constant<kRows>(static_cast<int>(a.x.rows), [&]<int R>() {
      for (std::int64_t i = begin; i < begin + distance; ++i) direct_tile<R, kOutputs>(i, distance);
      for (std::int64_t i = begin + kOutputs * distance; i < end; ++i) direct_tile<R, 1>(i, 0);
    });
  }

  // What scratch holds for a tile of O outputs: lanes for all rows, and a block of weights where they are kept.
  std::int64_t lane_floats(int outputs) const { return a.x.rows * outputs * 16; }
  std::int64_t tile_floats(int outputs) const {
    return lane_floats(outputs) + (widens_once ? kBlockTerms * outputs : 0);
  }

  // Adds `terms` terms from `start` on to the lanes of rows row .. row + R - 1 and of `tiles` tiles of O outputs each:
  // those of w, then their neighbours. The first rows fetch the weights of the next tile from memory.
  template <int R, int O>
  void add_block(std::int64_t row, std::int64_t start, std::int64_t terms, W w, std::int64_t tiles,
                 float* scratch) const {
    const float* x = a.x.data + row * a.x.stride + start;
    const std::uint8_t* next_block = w.data + terms * kItem;
    for (std::int64_t i = 0; i < tiles; ++i, scratch += tile_floats(O)) {
      const std::uint8_t* neighbour = w.data + row_bytes;
      const Ahead ahead{i + 1 < tiles ? neighbour : next_block, w.stride, row == 0 ? O : 0};
      float* own_lanes = scratch + row * O * 16;
      float* wide = scratch + lane_floats(O);
      Lanes<V, R, O> lanes;
      start == 0 ? lanes.clear() : lanes.load(own_lanes);
      if (!widens_once) {
        lanes.add(x, a.x.stride, w, terms, ahead);
      } else if constexpr (kWidensOnce) {
        row == 0 ? lanes.add(x, a.x.stride, KeptWeights<V, W, O>{w, wide}, terms, ahead)
                 : lanes.add(x, a.x.stride, WideWeights<V, O>{wide}, terms, ahead);
      }
      lanes.store(own_lanes);
      w.data = neighbour;
    }
  }

  template <int O>
  void emit_tile(std::int64_t first, std::int64_t distance, const float* lanes) const {
    for (std::int64_t row = 0; row < a.x.rows; ++row) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) emit(a, row, first + o * distance, V::sum(V::load(lanes + (row * O + o) * 16)));
    }
  }

  // All rows times outputs first + i + o * distance for i < tiles and o < O.
  template <int O>
  void blocked(std::int64_t first, std::int64_t tiles, std::int64_t distance, float* scratch) const {
    std::int64_t start = 0;
    do {
      const std::int64_t terms = a.x.cols - start < kBlockTerms ? a.x.cols - start : kBlockTerms;
      W w = weights(first, distance);
      w.data += start * kItem;
      for (std::int64_t row = 0; row < a.x.rows; row += kRows) {
        const int rows = a.x.rows - row < kRows ? static_cast<int>(a.x.rows - row) : kRows;
        with_constant<kRows>(rows, [&]<int R>() { add_block<R, O>(row, start, terms, w, tiles, scratch); });
      }
      start += kBlockTerms;
    } while (start < a.x.cols);
    for (std::int64_t i = 0; i < tiles; ++i) emit_tile<O>(first + i, distance, scratch + i * tile_floats(O));
  }

  void run(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    if (a.x.rows <= kRows) return direct(begin, end);
    float* floats = reinterpret_cast<float*>(scratch.data);
    const std::int64_t room = static_cast<std::int64_t>(scratch.bytes / sizeof(float)) / tile_floats(kOutputs);
    const std::int64_t most = room < kMostOutputs / kOutputs ? room : kMostOutputs / kOutputs;
    const std::int64_t distance = (end - begin) / kOutputs;
    for (std::int64_t i = 0; i < distance; i += most) {
      blocked<kOutputs>(begin + i, distance - i < most ? distance - i : most, distance, floats);
    }
    for (std::int64_t i = begin + kOutputs * distance; i < end; ++i) blocked<1>(i, 1, 0, floats);
  }
};

template <VectorBackend V, Dtype kDtype>
void matmul_as(const MatmulArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  Matmul<V, RawWeights<V, kDtype>>{a, a.x.cols * item_size(kDtype)}.run(begin, end, scratch);
}

template <VectorBackend V>
void matmul(const MatmulArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  switch (a.dtype) {
    case Dtype::kBF16:
      return matmul_as<V, Dtype::kBF16>(a, begin, end, scratch);
    case Dtype::kF16:
      return matmul_as<V, Dtype::kF16>(a, begin, end, scratch);
    case Dtype::kF32:
      return matmul_as<V, Dtype::kF32>(a, begin, end, scratch);
  }
}

}  // namespace
}  // namespace penstock
