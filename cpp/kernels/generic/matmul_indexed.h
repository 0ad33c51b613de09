// The matrix product with indexed weights (codec/index.h).
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
  const MatmulIndexedArgs& a;
  const std::int64_t groups = groups_of(a.w.cols);
  const std::int64_t pair_bytes = groups * kGroupPairBytes;

  // R rows of x times O rows of weights, in registers.
  template <int R, int O, int... I>
  void tile(std::int64_t first, std::integer_sequence<int, I...>) const {
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

  void fused(std::int64_t begin, std::int64_t end) const {
    with_constant<V::kTileRows>(static_cast<int>(a.x.rows), [&]<int R>() {
      constexpr int O = R == 1 ? V::kTileOutputs : R <= 3 ? 2 : 1;
      std::int64_t i = begin;
      for (; i + O <= end; i += O) tile<R, O>(i, std::make_integer_sequence<int, O>());
      for (; i < end; ++i) tile<R, 1>(i, std::make_integer_sequence<int, 1>());
    });
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
};

template <VectorBackend V, GroupBackend<V> G>
void matmul_indexed(const MatmulIndexedArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  const MatmulIndexed<V, G> product{a};
  a.x.rows <= V::kTileRows ? product.fused(begin, end) : product.runs(begin, end, scratch);
}

}  // namespace
}  // namespace penstock
