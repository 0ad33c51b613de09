// The matrix product with indexed weights (codec/index.h), which has the bits of that with plain ones.
//
// Up to three rows of x: weights go from registers into their products. As many as a tile has: a group of a tile's
// weights is decoded while the one before is multiplied, so that each load of x serves all outputs. More: block after
// block of columns, the weights of some outputs are decoded into the first level of the cache, where x's block stays
// for the next ones; the lanes rest in scratch between blocks. Many: runs of whole rows are decoded into the second.
#pragma once

#include <utility>

#include "codec/index.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/matmul.h"
#include "kernels/generic/unpack.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Gives the groups of one row, in order.
template <GroupWeights G>
struct IndexedRow {
  const std::uint8_t* row;
  const std::uint8_t* halves;
  const std::uint8_t* bytes;
  const std::uint8_t* exception;  // the next one's weights

  IndexedRow(const IndexedMatrix& w, std::int64_t r)
      : row(w.data + r * indexed_row_bytes(w.cols)),
        halves(row + indexed_header_bytes(w.cols)),
        bytes(halves + index_bytes(w.cols)),
        exception(w.data + w.rows * indexed_row_bytes(w.cols) + load_word<std::uint32_t>(row + 16) * kExceptionBytes) {}

  std::uint64_t flags(std::int64_t word) const { return load_word<std::uint64_t>(row + kIndexFlags + 8 * word); }
  [[gnu::always_inline]] inline typename G::Pairs indexed(std::int64_t g) const {
    return G::indexed(row, halves + g * kGroupIndexBytes, bytes + g * kGroupWeights);
  }
  typename G::Pairs any(std::int64_t g) {
    if ((flags(g / 64) >> g % 64 & 1) == 0) return indexed(g);
    const typename G::Pairs pairs = G::pairs_of(exception);
    exception += kExceptionBytes;
    return pairs;
  }
};

template <VectorBackend V, GroupBackend<V> G>
struct MatmulIndexed {
  static constexpr int kFusedRows = V::kTileRows < 3 ? V::kTileRows : 3;
  // Rows that are many repay decoding for all of them at once, and sooner where weights are better widened only once.
  static constexpr std::int64_t kBlockedRows = V::kWidensOnce ? 24 : kMatmulRows;
  static constexpr std::int64_t kBlockGroups = 8;
  // From one output's decoded block to the next: not at one set of the cache.
  static constexpr std::int64_t kBlockStride = kBlockGroups * kGroupPairBytes + 64;

  const MatmulIndexedArgs& a;
  const std::int64_t groups = groups_of(a.w.cols);
  const std::int64_t pair_bytes = groups * kGroupPairBytes;

  // R rows of x times O rows of weights, which go from registers into their products.
  template <int R, int O, int... I>
  void fused_tile(std::int64_t first, std::integer_sequence<int, I...>) const {
    IndexedRow<G> row[O] = {IndexedRow<G>(a.w, first + I)...};
    Lanes<V, R, O> lanes;
    lanes.clear();
    const std::int64_t whole = a.w.cols / kGroupWeights, ahead = O * indexed_row_bytes(a.w.cols);
    const float* x = a.x.data;
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) {
      for (std::int64_t i = 0; i < indexed_header_bytes(a.w.cols); i += 64)
        __builtin_prefetch(row[o].row + ahead + i, 0, 2);
    }
    for (std::int64_t start = 0; start < whole; start += 64) {
      std::uint64_t exceptions = (row[I].flags(start / 64) | ...);
      const std::int64_t end = whole - start < 64 ? whole : start + 64;
      for (std::int64_t g = start; g < end; ++g, x += kGroupWeights, exceptions >>= 1) {
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) {
          if (g % 2 == 0) __builtin_prefetch(row[o].halves + ahead + g * kGroupIndexBytes, 0, 2);
          __builtin_prefetch(row[o].bytes + ahead + g * kGroupWeights, 0, 2);
        }
        if ((exceptions & 1) != 0) [[unlikely]] {
          for (int o = 0; o < O; ++o) lanes.template add_group<G>(x, a.x.stride, row[o].any(g), o);
          continue;
        }
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) lanes.template add_group<G>(x, a.x.stride, row[o].indexed(g), o);
      }
    }
    if (whole < groups) {
      std::uint8_t last[O][kGroupPairBytes];
      for (int o = 0; o < O; ++o) G::store_pairs(last[o], row[o].any(whole));
      lanes.add(x, a.x.stride, PairWeights<V, G>{last[0], kGroupPairBytes}, a.w.cols % kGroupWeights, {nullptr, 0, 0});
    }
    for (int r = 0; r < R; ++r) {
      for (int o = 0; o < O; ++o) emit(a, r, first + o, V::sum(lanes.lane[r][o]));
    }
  }

  // A group of each row, `stride` bytes apart; those of as many rows behind them are brought closer.
  template <int O>
  [[gnu::always_inline]] inline void decode_group(IndexedRow<G> (&row)[O], std::int64_t g, std::uint8_t* out,
                                                  std::int64_t stride) const {
    const std::int64_t ahead = O * indexed_row_bytes(a.w.cols);
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) {
      if (g % 2 == 0) __builtin_prefetch(row[o].halves + ahead + g * kGroupIndexBytes, 0, 2);
      __builtin_prefetch(row[o].bytes + ahead + g * kGroupWeights, 0, 2);
      G::store_pairs(out + o * stride, row[o].any(g));
    }
  }

  // R rows of x times O rows of weights, of which two groups are kept.
  template <int R, int O, int... I>
  void kept_tile(std::int64_t first, std::integer_sequence<int, I...>) const {
    IndexedRow<G> row[O] = {IndexedRow<G>(a.w, first + I)...};
    alignas(64) std::uint8_t kept[2][O * kGroupPairBytes];
    Lanes<V, R, O> lanes;
    lanes.clear();
    decode_group(row, 0, kept[0], kGroupPairBytes);
    const float* x = a.x.data;
    const std::int64_t whole = a.w.cols / kGroupWeights;
    for (std::int64_t g = 0; g < whole; ++g, x += kGroupWeights) {
      if (g + 1 < groups) decode_group(row, g + 1, kept[(g + 1) % 2], kGroupPairBytes);
      const PairWeights<V, G> weights{kept[g % 2], kGroupPairBytes};
      PENSTOCK_UNROLL
      for (int step = 0; step < 4; ++step) lanes.step(x + step * 16, a.x.stride, weights, step);
    }
    const PairWeights<V, G> last{kept[whole % 2], kGroupPairBytes};
    if (whole < groups) lanes.add(x, a.x.stride, last, a.w.cols % kGroupWeights, {nullptr, 0, 0});
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) emit(a, r, first + o, V::sum(lanes.lane[r][o]));
    }
  }

  template <int R, int O>
  void tile(std::int64_t first) const {
    constexpr auto outputs = std::make_integer_sequence<int, O>();
    if constexpr (R <= kFusedRows) {
      fused_tile<R, O>(first, outputs);
    } else {
      kept_tile<R, O>(first, outputs);
    }
  }

  // No more rows of x than a tile has.
  void tiles(std::int64_t begin, std::int64_t end) const {
    with_constant<V::kTileRows>(static_cast<int>(a.x.rows), [&]<int R>() {
      constexpr int O = R == 1 || R > kFusedRows ? V::kTileOutputs : 2;
      std::int64_t i = begin;
      for (; i + O <= end; i += O) tile<R, O>(i);
      for (; i < end; ++i) tile<R, 1>(i);
    });
  }

  // Adds `terms` terms from `start` on to the lanes of rows row .. row + R - 1 and of O outputs.
  template <int R, int O>
  void add_block(std::int64_t row, std::int64_t start, std::int64_t terms, const std::uint8_t* weights,
                 float* own_lanes) const {
    Lanes<V, R, O> lanes;
    start == 0 ? lanes.clear() : lanes.load(own_lanes);
    const PairWeights<V, G> source{weights, kBlockStride};
    lanes.add(a.x.data + row * a.x.stride + start, a.x.stride, source, terms, {nullptr, 0, 0});
    lanes.store(own_lanes);
  }

  // All rows times outputs first .. first + T * O - 1: T tiles, whose lanes lie one behind the other.
  template <int T, int O, int... I>
  void blocked_tiles(std::int64_t first, std::byte* scratch, std::integer_sequence<int, I...>) const {
    IndexedRow<G> rows[] = {IndexedRow<G>(a.w, first + I)...};
    std::uint8_t* weights = reinterpret_cast<std::uint8_t*>(scratch);
    float* lanes = reinterpret_cast<float*>(weights + T * O * kBlockStride);
    const std::int64_t tile_floats = a.x.rows * O * 16;
    for (std::int64_t group = 0; group < groups; group += kBlockGroups) {
      for (std::int64_t g = 0; g < kBlockGroups && group + g < groups; ++g) {
        decode_group(rows, group + g, weights + g * kGroupPairBytes, kBlockStride);
      }
      const std::int64_t start = group * kGroupWeights, left = a.w.cols - start;
      const std::int64_t terms = left < kBlockGroups * kGroupWeights ? left : kBlockGroups * kGroupWeights;
      for (std::int64_t row = 0; row < a.x.rows; row += V::kTileRows) {
        const int count = a.x.rows - row < V::kTileRows ? static_cast<int>(a.x.rows - row) : V::kTileRows;
        with_constant<V::kTileRows>(count, [&]<int R>() {
          for (int t = 0; t < T; ++t) {
            add_block<R, O>(row, start, terms, weights + t * O * kBlockStride, lanes + t * tile_floats + row * O * 16);
          }
        });
      }
    }
    for (int i = 0; i < T * O; ++i) {
      const float* own_lanes = lanes + i / O * tile_floats + i % O * 16;
      for (std::int64_t row = 0; row < a.x.rows; ++row) {
        emit(a, row, first + i, V::sum(V::load(own_lanes + row * O * 16)));
      }
    }
  }

  // So many outputs at once from `begin` on, as long as there are enough; the first that is left.
  template <int T, int O>
  std::int64_t blocked(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    const std::int64_t bytes = T * O * (kBlockStride + a.x.rows * 64);
    if (bytes > static_cast<std::int64_t>(scratch.bytes)) return begin;
    for (; begin + T * O <= end; begin += T * O) {
      blocked_tiles<T, O>(begin, scratch.data, std::make_integer_sequence<int, T * O>());
    }
    return begin;
  }

  // Many rows of x: runs of rows are decoded into scratch, then multiplied with all of them.
  void runs(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    const std::int64_t room =
        (static_cast<std::int64_t>(scratch.bytes) - product_scratch(V::kTileOutputs)) / pair_bytes;
    const std::int64_t wanted = kDecodedBytes / pair_bytes;
    std::int64_t most = room < wanted ? room : wanted;
    most = most < V::kTileOutputs ? 1 : most / V::kTileOutputs * V::kTileOutputs;
    std::uint8_t* weights = reinterpret_cast<std::uint8_t*>(scratch.data);
    for (std::int64_t i = begin; i < end; i += most) {
      const std::int64_t n = end - i < most ? end - i : most;
      for (std::int64_t r = 0; r < n; ++r) {
        IndexedRow<G> row(a.w, i + r);
        for (std::int64_t g = 0; g < groups; ++g) {
          G::store_pairs(weights + r * pair_bytes + g * kGroupPairBytes, row.any(g));
        }
      }
      const std::size_t used = static_cast<std::size_t>(align_chunk(n * pair_bytes));
      for (std::int64_t row = 0; row < a.x.rows; row += kMatmulRows) {
        MatmulArgs part{a.x, weights, Dtype::kBF16, a.bias ? a.bias + i : nullptr, a.accumulate, a.out};
        part.x.rows = a.x.rows - row < kMatmulRows ? a.x.rows - row : kMatmulRows;
        part.x.data += row * a.x.stride;
        part.out.data += row * a.out.stride + i;
        Matmul<V, PairWeights<V, G>>{part, pair_bytes}.run(0, n, {scratch.data + used, scratch.bytes - used});
      }
    }
  }

  void run(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    if (a.x.rows <= V::kTileRows) return tiles(begin, end);
    if (a.x.rows > kBlockedRows) return runs(begin, end, scratch);
    begin = blocked<2, V::kTileOutputs>(begin, end, scratch);
    begin = blocked<1, V::kTileOutputs>(begin, end, scratch);
    blocked<1, 1>(begin, end, scratch);
  }
};

template <VectorBackend V, GroupBackend<V> G>
void matmul_indexed(const MatmulIndexedArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  MatmulIndexed<V, G>{a}.run(begin, end, scratch);
}

}  // namespace
}  // namespace penstock
