#ifndef PENSTOCK_O
#define PENSTOCK_O 4
#endif
// The matrix product with packed weights.
#pragma once

#include "kernels/generic/matmul.h"
#include "kernels/generic/unpack.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

template <class V, class G>
struct MatmulPacked {
  const MatmulPackedArgs& a;
  const std::int64_t groups = groups_of(a.w.cols);
  const std::int64_t row_bytes = groups * kGroupPairBytes;

  void emit(std::int64_t row, std::int64_t output, float dot) const {
    if (a.bias) dot = dot + a.bias[output];
    float* out = a.out.data + row * a.out.stride + output;
    *out = a.accumulate ? *out + dot : dot;
  }

  // Few rows of x: exponents of O rows are put into scratch, the rest happens in registers.
  template <int R, int O>
  bool fused_tile(std::int64_t first, std::uint8_t* scratch) const {
    PackedRow row[O];
    RowParts parts[O];
    typename G::template Depths<O> depths;
    const std::int64_t exponent_bytes = groups * kGroupWeights + 192;
    std::int64_t tile_bytes = 0;
    for (int o = 0; o < O; ++o) {
      row[o] = find_row(a.w, first + o);
      if (!row[o].sound || row[o].raw) return false;
      tile_bytes += row[o].bytes;
    }
    if (!depths.find(row, parts, scratch + O * exponent_bytes)) return false;
    depths.expand(row);
    for (int o = 0; o < O; ++o) {
      typename G::template Depths<O>::Reader reader(depths, row[o], o);
      for (std::int64_t g = 0; g < groups; ++g) reader.step(row[o].coarse + g * kGroupCoarseBytes, scratch + o * exponent_bytes + g * kGroupWeights);
    }
    for (int o = 0; o < O; ++o) {
      if (!apply_patches(row[o], parts[o], scratch + o * exponent_bytes)) return false;
    }
    Lanes<V, R, O> lanes;
    lanes.clear();
    const float* x = a.x.data;
    const std::int64_t whole = a.w.cols / kGroupWeights;
    for (std::int64_t g = 0; g < whole; ++g, x += kGroupWeights) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        __builtin_prefetch(row[o].mantissas(g) + tile_bytes, 0, 2);
        __builtin_prefetch(row[o].coarse + (O * groups + g) * kGroupCoarseBytes, 0, 2);
        const std::uint8_t* exponents = scratch + o * exponent_bytes + g * kGroupWeights;
        lanes.template add_group<G>(x, a.x.stride, G::compose(exponents, row[o].mantissas(g), row[o].sign(g)), o);
      }
    }
    if (whole < groups) {
      std::uint8_t last[O][kGroupPairBytes];
      for (int o = 0; o < O; ++o) {
        const std::uint8_t* exponents = scratch + o * exponent_bytes + whole * kGroupWeights;
        G::store_pairs(last[o], G::compose(exponents, row[o].mantissas(whole), row[o].sign(whole)));
      }
      lanes.add(x, a.x.stride, PairWeights<V, G>{last[0], kGroupPairBytes}, a.w.cols % kGroupWeights, {nullptr, 0, 0});
    }
    for (int r = 0; r < R; ++r) {
      for (int o = 0; o < O; ++o) emit(r, first + o, V::sum(lanes.lane[r][o]));
    }
    return true;
  }

  void fused(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(scratch.data);
    with_constant<V::kTileRows>(static_cast<int>(a.x.rows), [&]<int R>() {
      constexpr int O = R == 1 ? PENSTOCK_O : R <= 3 ? 2 : 1;
      std::int64_t i = begin;
      for (; i + O <= end; i += O) {
        if (!fused_tile<R, O>(i, bytes)) runs(i, i + O, scratch);
      }
      for (; i < end; ++i) {
        if (!fused_tile<R, 1>(i, bytes)) runs(i, i + 1, scratch);
      }
    });
  }

  // Many rows of x: runs of rows are decoded into scratch, then multiplied with all of them.
  void runs(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    const std::int64_t decoder = align_chunk(unpack_scratch(a.w.cols));
    const std::int64_t room = (static_cast<std::int64_t>(scratch.bytes) - decoder - matmul_scratch(V::kTileOutputs)) / row_bytes;
    const std::int64_t wanted = kDecodedBytes / row_bytes;
    std::int64_t most = room < wanted ? room : wanted;
    most = most < V::kTileOutputs ? 1 : most / V::kTileOutputs * V::kTileOutputs;
    std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(scratch.data);
    std::uint8_t* weights = bytes + decoder;
    for (std::int64_t i = begin; i < end; i += most) {
      const std::int64_t n = end - i < most ? end - i : most;
      unpack_pairs<G>(a.w, i, i + n, weights, bytes, a.malformed);
      const std::size_t used = static_cast<std::size_t>(decoder + align_chunk(n * row_bytes));
      for (std::int64_t row = 0; row < a.x.rows; row += kMatmulRows) {
        MatmulArgs part{a.x, weights, Dtype::kBF16, a.bias ? a.bias + i : nullptr, a.accumulate, a.out};
        part.x.rows = a.x.rows - row < kMatmulRows ? a.x.rows - row : kMatmulRows;
        part.x.data += row * a.x.stride;
        part.out.data += row * a.out.stride + i;
        Matmul<V, PairWeights<V, G>>{part, row_bytes}.run(0, n, {scratch.data + used, scratch.bytes - used});
      }
    }
  }

  void run(std::int64_t begin, std::int64_t end, Scratch scratch) const {
    const std::int64_t fused_bytes = 4 * (groups * kGroupWeights + 192) + G::template Depths<4>::scratch_bytes(groups);
    if (a.x.rows <= V::kTileRows && fused_bytes <= static_cast<std::int64_t>(scratch.bytes)) {
      return fused(begin, end, scratch);
    }
    runs(begin, end, scratch);
  }
};

template <class V, class G>
void matmul_packed(const MatmulPackedArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  MatmulPacked<V, G>{a}.run(begin, end, scratch);
}

}  // namespace
}  // namespace penstock
