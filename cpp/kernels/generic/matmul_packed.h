// The matrix product with packed weights, which has the bits of that with plain ones.
//
// Few rows of x: weights go from registers into their products. More: runs of rows are decoded into scratch, as many as
// stay in the second level of the cache, and multiplied with all rows of x.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/matmul.h"
#include "kernels/generic/unpack.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Multiplies weights with R rows of x as they come.
template <VectorBackend V, int R>
struct Product {
  template <class G, int O>
  struct Sink {
    using Job = MatmulPackedArgs;
    const Job& a;
    const std::int64_t first;
    Lanes<V, R, O> lanes;
    std::uint8_t last[O][kGroupPairBytes];  // a group that is not full

    [[gnu::always_inline]] inline Sink(const Job& job, std::int64_t first_row) : a(job), first(first_row) {
      lanes.clear();
    }
    [[gnu::always_inline]] inline void group(std::int64_t g, int o, const typename G::Pairs& pairs) {
      if ((g + 1) * kGroupWeights <= a.w.cols) {
        lanes.template add_group<G>(a.x.data + g * kGroupWeights, a.x.stride, pairs, o);
      } else {
        G::store_pairs(last[o], pairs);
      }
    }
    [[gnu::always_inline]] inline void finish() {
      if (const std::int64_t rest = a.w.cols % kGroupWeights; rest != 0) {
        const PairWeights<V, G> weights{last[0], kGroupPairBytes};
        lanes.add(a.x.data + a.w.cols - rest, a.x.stride, weights, rest, {nullptr, 0, 0});
      }
      PENSTOCK_UNROLL
      for (int r = 0; r < R; ++r) {
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) emit(a, r, first + o, V::sum(lanes.lane[r][o]));
      }
    }
  };
};

template <VectorBackend V, GroupBackend<V> G>
struct MatmulPacked {
  static constexpr int kFusedRows = 2;  // more rows of x had to be read too often for the weights of few rows

  const MatmulPackedArgs& a;
  const Scratch scratch;
  const std::int64_t row_bytes = pair_bytes(a.w.cols);

  std::uint8_t* bytes() const { return reinterpret_cast<std::uint8_t*>(scratch.data); }

  // Whether scratch has room for decoding kPackedRows rows at a time, and for `more`.
  bool has_room(std::int64_t more) const {
    return decoder_scratch(a.w.cols, kPackedRows) + more <= static_cast<std::int64_t>(scratch.bytes);
  }

  void fused(std::int64_t begin, std::int64_t end) const {
    with_constant<kFusedRows>(static_cast<int>(a.x.rows), [&]<int R>() {
      walk<G, kPackedRows, 2, Product<V, R>::template Sink>(a.w, begin, end, a, bytes(), a.malformed);
    });
  }

  // Outputs [begin, end), by rows decoded to `weights`; `rest` is the product's own scratch.
  void multiply(std::int64_t begin, std::int64_t end, const std::uint8_t* weights, Scratch rest) const {
    for (std::int64_t row = 0; row < a.x.rows; row += kMatmulRows) {
      MatmulArgs part{a.x, weights, Dtype::kBF16, a.bias ? a.bias + begin : nullptr, a.accumulate, a.out};
      part.x.rows = a.x.rows - row < kMatmulRows ? a.x.rows - row : kMatmulRows;
      part.x.data += row * a.x.stride;
      part.out.data += row * a.out.stride + begin;
      Matmul<V, PairWeights<V, G>>{part, row_bytes}.run(0, end - begin, rest);
    }
  }

  template <int O>
  void runs(std::int64_t begin, std::int64_t end) const {
    const std::int64_t decoder = align_chunk(decoder_scratch(a.w.cols, O));
    const std::int64_t room = static_cast<std::int64_t>(scratch.bytes) - decoder - product_scratch(V::kTileOutputs);
    const std::int64_t tiles = (room < kDecodedBytes ? room : kDecodedBytes) / (V::kTileOutputs * row_bytes);
    const std::int64_t step = tiles > 0 ? tiles * V::kTileOutputs : O == 1 ? 1 : V::kTileOutputs;
    std::uint8_t* weights = bytes() + decoder;
    const std::int64_t used = decoder + step * row_bytes;
    const Scratch rest{scratch.data + used, scratch.bytes - static_cast<std::size_t>(used)};
    for (std::int64_t i = begin; i < end; i += step) {
      const std::int64_t stop = end - i < step ? end : i + step;
      walk<G, O, 1, PairsSink>(a.w, i, stop, {i, row_bytes, weights}, bytes(), a.malformed);
      multiply(i, stop, weights, rest);
    }
  }

  void run(std::int64_t begin, std::int64_t end) const {
    if (a.x.rows <= kFusedRows && has_room(0)) return fused(begin, end);
    const bool is_roomy = has_room(V::kTileOutputs * row_bytes + product_scratch(V::kTileOutputs));
    is_roomy ? runs<kPackedRows>(begin, end) : runs<1>(begin, end);
  }
};

template <VectorBackend V, GroupBackend<V> G>
void matmul_packed(const MatmulPackedArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  MatmulPacked<V, G>{a, scratch}.run(begin, end);
}

}  // namespace
}  // namespace penstock
