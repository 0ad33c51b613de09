// The product of int8 activations with weights of few levels (kernels/draft.h).
//
// Few rows of x: weights go from registers into their products. More: block after block of columns, a tile's weights
// are kept as bytes, and multiplied with all rows of x; the lanes rest in scratch between blocks.
#pragma once

#include "kernels/draft.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/coarse.h"
#include "kernels/generic/matmul.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Sources of weights: what is common to a row, the 64 levels of one of its groups, and scales.
template <LevelProducts D>
struct CoarseLevels {
  using Args = MatmulCoarseArgs;
  static constexpr bool kHasBlockScales = false;
  static constexpr std::int64_t kGroupBytes = kGroupCoarseBytes;

  struct Row {
    const std::uint8_t* groups;
    typename D::Table table;

    [[gnu::always_inline]] inline typename D::Bytes load(std::int64_t g) const {
      return D::coarse(table, groups + g * kGroupCoarseBytes);
    }
    float block_scale(std::int64_t) const { return 1.0f; }
  };

  const CoarseMatrix& w;

  // The table's entries are low + 2 high + 4 sign, all four magnitudes at once; its upper half is never used.
  Row row(std::int64_t i) const {
    constexpr std::uint32_t kOnes = 0x01010101;
    static_assert(kMostLevel == 63 && kZeroLevel == 64);
    const std::uint32_t magnitudes = load_word<std::uint32_t>(w.magnitudes + i * 4);
    const std::uint32_t over = (magnitudes >> 6 | magnitudes >> 7) & kOnes;
    const std::uint32_t level = (magnitudes | over * kMostLevel) & kOnes * kMostLevel;
    const std::uint32_t signs[2] = {kOnes * kZeroLevel + level, kOnes * kZeroLevel - level};
    std::uint8_t levels[16];
    __builtin_memcpy(levels, signs, sizeof(signs));
    __builtin_memcpy(levels + sizeof(signs), signs, sizeof(signs));
    return {CoarseRow(w, i).groups, D::table_of(levels)};
  }
  float row_scale(std::int64_t i) const { return w.scales[i]; }
};

template <LevelProducts D>
struct NibbleLevels {
  using Args = MatmulNibblesArgs;
  static constexpr bool kHasBlockScales = true;
  static constexpr std::int64_t kGroupBytes = kGroupNibbleBytes;

  struct Row {
    const std::uint8_t* groups;
    const float* scales;
    typename D::Table table;

    [[gnu::always_inline]] inline typename D::Bytes load(std::int64_t g) const {
      return D::nibbles(table, groups + g * kGroupNibbleBytes);
    }
    float block_scale(std::int64_t b) const { return scales[b]; }
  };

  const NibbleMatrix& w;

  Row row(std::int64_t i) const {
    std::uint8_t levels[16];
    for (int n = 0; n < 8; ++n) {
      levels[8 + n] = static_cast<std::uint8_t>(kZeroLevel + kNibbleLevels[n]);
      levels[7 - n] = static_cast<std::uint8_t>(kZeroLevel - kNibbleLevels[n]);
    }
    return {w.data + i * groups_of(w.cols) * kGroupNibbleBytes, w.scales + i * blocks_of(w.cols), D::table_of(levels)};
  }
  float row_scale(std::int64_t) const { return 1.0f; }
};

// A block of levels that were kept, those of O rows group by group.
template <LevelProducts D, int O>
struct KeptLevels {
  const std::uint8_t* data;

  [[gnu::always_inline]] inline typename D::Bytes load(std::int64_t g, int o) const {
    return D::load(data + (g * O + o) * kGroupWeights);
  }
};

template <LevelProducts D, class Row, int O>
struct FreshLevels {
  const Row (&row)[O];
  std::int64_t first;  // group of the block

  [[gnu::always_inline]] inline typename D::Bytes load(std::int64_t g, int o) const { return row[o].load(first + g); }
};

template <VectorBackend V, LevelBackend<V> D, class Source>
struct MatmulLevels {
  using Args = typename Source::Args;
  using Row = typename Source::Row;
  using Sums = typename D::Sums;
  static constexpr std::int64_t kAheadBytes = 1024;  // of each stream of weights that go into registers

  const Args& a;
  const Source source;
  const std::int64_t groups = groups_of(a.x.cols);
  const std::int64_t blocks = blocks_of(a.x.cols);
  const std::int64_t stride = blocks * kBlockBytes;  // from one row of x to the next

  std::int64_t groups_in(std::int64_t block) const {
    const std::int64_t left = groups - block * kBlockGroups;
    return left < kBlockGroups ? left : kBlockGroups;
  }

  // Brings the groups of a block into the second level of the cache.
  [[gnu::always_inline]] inline static void prefetch(const std::uint8_t* block) {
    PENSTOCK_UNROLL
    for (std::int64_t i = 0; i < kBlockGroups * Source::kGroupBytes; i += 64) __builtin_prefetch(block + i, 0, 2);
  }

  // The integer sums of R x O products over one block; x points at that of the first row. The array must be the
  // caller's own variable: within an object, the compiler would keep it in memory.
  template <int R, int O, class W>
  [[gnu::always_inline]] inline void sum_block(const std::uint8_t* x, const W& w, std::int64_t block,
                                               Sums (&sum)[R][O]) const {
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) sum[r][o] = D::load_sums(x + r * stride + kBlockSums);
    }
    const std::int64_t count = groups_in(block);
    PENSTOCK_KEEP_LOOP
    for (std::int64_t g = 0; g < count; ++g) {
      typename D::Bytes weight[O];
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) weight[o] = w.load(g, o);
      PENSTOCK_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto value = D::load(x + r * stride + g * kGroupWeights);
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) sum[r][o] = D::dot(sum[r][o], weight[o], value);
      }
    }
  }

  // total + sums * scales.
  [[gnu::always_inline]] inline static V add(const V& total, const Sums& sums, const std::uint8_t* x, const Row& row,
                                             std::int64_t block) {
    float scale;
    __builtin_memcpy(&scale, x + kBlockScale, sizeof(scale));
    V product = V::mul(D::to_floats(sums), V::broadcast(scale));
    if constexpr (Source::kHasBlockScales) product = V::mul(product, V::broadcast(row.block_scale(block)));
    return V::add(total, product);
  }

  void end(std::int64_t r, std::int64_t output, const V& lanes) const {
    const float dot = V::sum(lanes);
    emit(a, r, output, Source::kHasBlockScales ? dot : dot * source.row_scale(output));
  }

  // All rows, R of them, times outputs first, first + distance, ... (O of them).
  template <int R, int O>
  void direct_tile(std::int64_t first, std::int64_t distance) const {
    Row row[O];
    for (int o = 0; o < O; ++o) row[o] = source.row(first + o * distance);
    V total[R][O];
    PENSTOCK_UNROLL
    for (int r = 0; r < R; ++r) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) total[r][o] = V::zero();
    }
    for (std::int64_t b = 0; b < blocks; ++b) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) prefetch(row[o].groups + b * kBlockGroups * Source::kGroupBytes + kAheadBytes);
      const std::uint8_t* x = a.x.data + b * kBlockBytes;
      Sums sum[R][O];
      sum_block(x, FreshLevels<D, Row, O>{row, b * kBlockGroups}, b, sum);
      PENSTOCK_UNROLL
      for (int r = 0; r < R; ++r) {
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) total[r][o] = add(total[r][o], sum[r][o], x + r * stride, row[o], b);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int o = 0; o < O; ++o) end(r, first + o * distance, total[r][o]);
    }
  }

  // Each of the streams runs through adjacent rows of weights.
  void direct(std::int64_t begin, std::int64_t last) const {
    with_constant<D::kDirectRows>(static_cast<int>(a.x.rows), [&]<int R>() {
      constexpr int kMost = D::kDirectSums / R;
      constexpr int O = kMost < 1 ? 1 : kMost < 4 ? kMost : 4;
      const std::int64_t distance = (last - begin) / O;
      for (std::int64_t i = begin; i < begin + distance; ++i) direct_tile<R, O>(i, distance);
      for (std::int64_t i = begin + O * distance; i < last; ++i) direct_tile<R, 1>(i, 0);
    });
  }

  // Rows r .. r + R - 1 times O outputs in one block.
  template <int R, int O>
  void add_block(std::int64_t r, std::int64_t b, const std::uint8_t* kept, const Row (&row)[O], float* lanes) const {
    const std::uint8_t* x = a.x.data + r * stride + b * kBlockBytes;
    Sums sum[R][O];
    sum_block(x, KeptLevels<D, O>{kept}, b, sum);
    lanes += r * O * 16;
    PENSTOCK_UNROLL
    for (int i = 0; i < R; ++i) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        float* own = lanes + (i * O + o) * 16;
        V::store(own, add(V::load(own), sum[i][o], x + i * stride, row[o], b));
      }
    }
  }

  // All rows times outputs first .. first + O - 1.
  template <int O>
  void blocked_tile(std::int64_t first, Scratch scratch) const {
    float* lanes = reinterpret_cast<float*>(scratch.data);
    std::uint8_t* kept = reinterpret_cast<std::uint8_t*>(lanes + a.x.rows * O * 16);
    Row row[O];
    for (int o = 0; o < O; ++o) row[o] = source.row(first + o);
    for (std::int64_t i = 0; i < a.x.rows * O; ++i) V::store(lanes + i * 16, V::zero());
    for (std::int64_t b = 0; b < blocks; ++b) {
      for (int o = 0; o < O; ++o) {  // of the next tile
        prefetch(row[o].groups + (O * groups + b * kBlockGroups) * Source::kGroupBytes);
      }
      for (std::int64_t g = 0; g < groups_in(b); ++g) {
        for (int o = 0; o < O; ++o) D::store(kept + (g * O + o) * kGroupWeights, row[o].load(b * kBlockGroups + g));
      }
      for (std::int64_t r = 0; r < a.x.rows; r += D::kTileRows) {
        const int rows = a.x.rows - r < D::kTileRows ? static_cast<int>(a.x.rows - r) : D::kTileRows;
        with_constant<D::kTileRows>(rows, [&]<int R>() { add_block<R, O>(r, b, kept, row, lanes); });
      }
    }
    for (std::int64_t r = 0; r < a.x.rows; ++r) {
      for (int o = 0; o < O; ++o) end(r, first + o, V::load(lanes + (r * O + o) * 16));
    }
  }

  void run(std::int64_t begin, std::int64_t last, Scratch scratch) const {
    if (a.x.rows <= D::kDirectRows) return direct(begin, last);
    std::int64_t i = begin;
    for (; i + D::kTileOutputs <= last; i += D::kTileOutputs) blocked_tile<D::kTileOutputs>(i, scratch);
    for (; i < last; ++i) blocked_tile<1>(i, scratch);
  }
};

template <VectorBackend V, LevelBackend<V> D>
void matmul_coarse(const MatmulCoarseArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  MatmulLevels<V, D, CoarseLevels<D>>{a, {a.w}}.run(begin, end, scratch);
}

template <class D>
void widen_coarse(const WidenCoarseArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const CoarseLevels<D> source{a.w};
  const std::int64_t groups = groups_of(a.w.cols);
  for (std::int64_t i = begin; i < end; ++i) {
    const auto row = source.row(i);
    const float scale = source.row_scale(i);
    float* out = a.out + i * a.w.cols;
    for (std::int64_t g = 0; g < groups; ++g, out += kGroupWeights) {
      alignas(64) std::uint8_t levels[kGroupWeights];
      D::store(levels, row.load(g));
      const std::int64_t left = a.w.cols - g * kGroupWeights, count = left < kGroupWeights ? left : kGroupWeights;
      for (int position = 0; position < kGroupWeights; ++position) {
        const int weight = weight_at(position);
        if (weight < count) out[weight] = scale * static_cast<float>(static_cast<int>(levels[position]) - kZeroLevel);
      }
    }
  }
}

template <VectorBackend V, LevelBackend<V> D>
void matmul_nibbles(const MatmulNibblesArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  MatmulLevels<V, D, NibbleLevels<D>>{a, {a.w}}.run(begin, end, scratch);
}

}  // namespace
}  // namespace penstock
