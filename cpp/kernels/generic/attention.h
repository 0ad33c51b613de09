// Grouped-query attention over a paged KV cache, in two passes: all scores of a block of query vectors, then, after the
// exact maximum, all weights times values. Nothing is rescaled, so that no result depends on how keys are grouped.
//
// Goals: keys and values are read (and widened) once for a block of query vectors of one kv head; the scratch of a
// thread decides how many that is. Non-goals: splitting the keys of one query vector over threads.
#pragma once

#include "kernels/attention_scratch.h"
#include "kernels/generic/attention_runs.h"
#include "kernels/generic/attention_tiles.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/exp.h"
#include "kernels/generic/scale.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

constexpr int kMaxQueries = 64;
// With fewer query vectors than this, each tile widens BF16 for itself; with more, widening once is faster.
constexpr int kWidenFirst = 32;

constexpr std::int64_t clamp(std::int64_t value, std::int64_t least, std::int64_t most) {
  return value < least ? least : value < most ? value : most;
}

// Query vectors of one kv head, ordered by rows.
struct QueryBlock {
  const AttentionArgs& a;
  std::int64_t kv_head;
  int count;
  const float* q[kMaxQueries];
  float* out[kMaxQueries];
  float* scores[kMaxQueries];
  std::int64_t row[kMaxQueries];

  std::int64_t prefix(int i) const { return a.prefix[row[i]]; }
  std::int64_t tail(int i) const { return a.tail_offsets[row[i] + 1] - a.tail_offsets[row[i]]; }
  const std::int32_t* tail_slots(int i) const { return a.tail_slots + a.tail_offsets[row[i]]; }
  std::int64_t keys(int i) const { return prefix(i) + tail(i); }
  // The first position that i sees.
  std::int64_t first(int i) const { return a.window == 0 || keys(i) < a.window ? 0 : keys(i) - a.window; }

  // How many of the slots at .. at + length the prefix of i has.
  std::int64_t visible(int i, std::int64_t at, std::int64_t length) const { return clamp(prefix(i) - at, 0, length); }
  // How many of them lie before what i sees.
  std::int64_t passed(int i, std::int64_t at, std::int64_t length) const { return clamp(first(i) - at, 0, length); }
  std::int64_t least_first() const {
    std::int64_t least = first(0);
    for (int i = 1; i < count; ++i) least = first(i) < least ? first(i) : least;
    return least;
  }
  std::int64_t longest_prefix() const {
    std::int64_t longest = 0;
    for (int i = 0; i < count; ++i) longest = prefix(i) > longest ? prefix(i) : longest;
    return longest;
  }
  // Calls f(begin, end) for the query vectors of each row.
  template <class F>
  void for_rows(F f) const {
    for (int begin = 0, end = 0; begin < count; begin = end) {
      while (end < count && row[end] == row[begin]) ++end;
      f(begin, end);
    }
  }
};

// Calls tile(Width<w>, i) for consecutive i .. i + w of [begin, end), w being 4, then 2 or 1.
template <int w>
struct Width {
  static constexpr int value = w;
};
template <class Tile>
void for_tiles(int begin, int end, Tile tile) {
  int i = begin;
  for (; i + 4 <= end; i += 4) tile(Width<4>{}, i);
  if (i + 2 <= end) {
    tile(Width<2>{}, i);
    i += 2;
  }
  if (i < end) tile(Width<1>{}, i);
}

// Scores of `length` keys for query vectors i .. i + kQueries, rounded up to the tile: what is past a row's keys is
// overwritten or never read.
template <VectorBackend V, int kQueries>
void score_run(const QueryBlock& block, int i, std::int64_t at, std::int64_t length, const Run& run) {
  const auto tile =
      run.dtype == Dtype::kBF16 ? score_tile<V, kQueries, Dtype::kBF16> : score_tile<V, kQueries, Dtype::kF32>;
  for (std::int64_t j = 0; j < length; j += 16 / kQueries) {
    tile(block.q + i, run.from(j), block.a.kv.head_dim, block.a.scale, block.scores + i, at + j);
  }
}

template <VectorBackend V>
void score(const QueryBlock& block, const Plane<V>& keys) {
  keys.for_prefix(block.least_first(), block.longest_prefix(), [&](std::int64_t at, std::int64_t length, Run run) {
    for_tiles(0, block.count, [&](auto width, int i) {
      std::int64_t longest = 0;
      for (int t = i; t < i + width.value; ++t) {
        const std::int64_t visible = block.visible(t, at, length);
        longest = visible > longest ? visible : longest;
      }
      score_run<V, width.value>(block, i, at, longest, run);
      run.ahead = 0;
    });
  });
  block.for_rows([&](int begin, int end) {
    keys.for_tail(
        block.tail_slots(begin), block.tail(begin), [&](std::int64_t at, std::int64_t length, const Run& run) {
          for_tiles(begin, end,
                    [&](auto width, int i) { score_run<V, width.value>(block, i, block.prefix(i) + at, length, run); });
        });
  });
}

// Scores of positions first .. keys, as the softmax takes them: capped, and -inf, of which exp makes zeros, in the
// other lanes of their vectors.
template <VectorBackend V>
void prepare(float* scores, std::int64_t first, std::int64_t keys, float softcap) {
  const V minus_infinity = V::broadcast(-__builtin_inff());
  const std::int64_t start = first / 16 * 16, padded = (keys + 15) / 16 * 16;
  if (softcap != 0.0f) {
    for (std::int64_t p = start; p < padded; p += 16) V::store(scores + p, capped(V::load(scores + p), softcap));
  }
  if (keys < padded) {
    float* last = scores + padded - 16;
    V::store(last, V::select(V::first(static_cast<int>(keys % 16)), V::load(last), minus_infinity));
  }
  if (start < first) {
    V::store(scores + start,
             V::select(V::first(static_cast<int>(first % 16)), minus_infinity, V::load(scores + start)));
  }
}

// scores[p] = exp(scores[p] - maximum) for p from `first` on; returns their sum.
template <VectorBackend V>
float exponentiate(float* scores, std::int64_t first, std::int64_t keys) {
  const std::int64_t start = first / 16 * 16, padded = (keys + 15) / 16 * 16;
  V maximum = V::broadcast(-__builtin_inff());
  for (std::int64_t p = start; p < padded; p += 16) maximum = V::max(V::load(scores + p), maximum);
  maximum = V::broadcast(V::reduce_max(maximum));
  V sums = V::zero();
  for (std::int64_t p = start; p < padded; p += 16) {
    const V weights = exp_lanes(V::sub(V::load(scores + p), maximum));
    V::store(scores + p, weights);
    sums = V::add(sums, weights);
  }
  return V::sum(sums);
}

// out[i] += weights of positions `at` on times the first `count` values of a run, for query vectors i .. i + kQueries.
template <VectorBackend V, int kQueries, Dtype kDtype>
void value_run(const QueryBlock& block, int i, std::int64_t at, int count, const Run& run) {
  constexpr int kVecs = V::kParts == 1 ? 4 : 1;
  const std::int64_t dim = block.a.kv.head_dim;
  const float* const* w = block.scores + i;
  float* const* out = block.out + i;
  std::int64_t d = 0;
  for (; d + 16 * kVecs <= dim; d += 16 * kVecs) value_tile<V, kQueries, kVecs, kDtype>(w, at, run, count, out, d);
  for (; d + 16 <= dim; d += 16) value_tile<V, kQueries, 1, kDtype>(w, at, run, count, out, d);
  if (d < dim) value_rest<V, kQueries, kDtype>(w, at, run, count, out, d, static_cast<int>(dim - d));
}

// The same for the values begin .. end of a run whose first is at position `at`.
template <VectorBackend V, int kQueries>
void value_run(const QueryBlock& block, int i, std::int64_t at, std::int64_t begin, std::int64_t end, const Run& run) {
  if (begin >= end) return;
  const auto add =
      run.dtype == Dtype::kBF16 ? value_run<V, kQueries, Dtype::kBF16> : value_run<V, kQueries, Dtype::kF32>;
  add(block, i, at + begin, static_cast<int>(end - begin), run.from(begin));
}

template <VectorBackend V>
void add_values(const QueryBlock& block, const Plane<V>& values) {
  values.for_prefix(block.least_first(), block.longest_prefix(), [&](std::int64_t at, std::int64_t length, Run run) {
    for_tiles(0, block.count, [&](auto width, int i) {
      std::int64_t begin = 0, end = length;  // what all of them see
      for (int t = i; t < i + width.value; ++t) {
        const std::int64_t passed = block.passed(t, at, length), visible = block.visible(t, at, length);
        begin = passed > begin ? passed : begin;
        end = visible < end ? visible : end;
      }
      if (begin > end) begin = end;
      for (int t = i; t < i + width.value; ++t) {
        value_run<V, 1>(block, t, at, block.passed(t, at, length), clamp(block.visible(t, at, length), 0, begin), run);
      }
      value_run<V, width.value>(block, i, at, begin, end, run);
      run.ahead = 0;
      for (int t = i; t < i + width.value; ++t) {
        const std::int64_t passed = block.passed(t, at, length);
        value_run<V, 1>(block, t, at, passed > end ? passed : end, block.visible(t, at, length), run);
      }
    });
  });
  block.for_rows([&](int begin, int end) {
    values.for_tail(block.tail_slots(begin), block.tail(begin),
                    [&](std::int64_t at, std::int64_t length, const Run& run) {
                      for_tiles(begin, end, [&](auto width, int i) {
                        const std::int64_t position = block.prefix(i) + at;
                        const std::int64_t passed = block.passed(i, position, length);
                        value_run<V, width.value>(block, i, position, passed, length, run);
                      });
                    });
  });
}

template <VectorBackend V>
void divide(float* out, std::int64_t dim, float divisor) {
  for (std::int64_t d = 0; d < dim; d += 16) {
    const int count = dim - d < 16 ? static_cast<int>(dim - d) : 16;
    V::store(out + d, V::div(V::load(out + d, count), V::broadcast(divisor)), count);
  }
}

template <VectorBackend V>
void attend(const QueryBlock& block, float* wide) {
  const KvLayer& kv = block.a.kv;
  const bool widen_first = block.count >= kWidenFirst;
  float sums[kMaxQueries];
  score<V>(block, {kv, kv.key_offset, block.kv_head, widen_first, wide});
  for (int i = 0; i < block.count; ++i) {
    prepare<V>(block.scores[i], block.first(i), block.keys(i), block.a.softcap);
    sums[i] = exponentiate<V>(block.scores[i], block.first(i), block.keys(i));
    for (std::int64_t d = 0; d < kv.head_dim; ++d) block.out[i][d] = 0.0f;
  }
  add_values<V>(block, {kv, kv.value_offset, block.kv_head, widen_first, wide});
  for (int i = 0; i < block.count; ++i) divide<V>(block.out[i], kv.head_dim, sums[i]);
}

std::int64_t longest_path(const AttentionArgs& a, std::int64_t begin, std::int64_t end) {
  std::int64_t longest = 0;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t keys = a.prefix[row] + a.tail_offsets[row + 1] - a.tail_offsets[row];
    longest = keys > longest ? keys : longest;
  }
  return longest;
}

template <VectorBackend V>
void attend_rows(const AttentionArgs& a, std::int64_t kv_head, std::int64_t begin, std::int64_t end, Scratch scratch) {
  const std::int64_t dim = a.kv.head_dim;
  const std::int64_t group = a.heads / a.kv.kv_heads;
  const std::int64_t stride = attention_score_stride(longest_path(a, begin, end));
  float* wide = reinterpret_cast<float*>(scratch.data);
  float* scores = wide + attention_run(a.kv.block_slots, dim) * attention_entry_stride(dim);
  std::int64_t fits = (static_cast<std::int64_t>(scratch.bytes / sizeof(float)) - (scores - wide)) / stride;
  if (fits > kMaxQueries) fits = kMaxQueries;
  if (fits > 4) fits -= fits % 4;

  // Query vectors are counted row by row, the heads of the group within a row.
  for (std::int64_t first = begin * group; first < end * group; first += fits) {
    const std::int64_t left = end * group - first;
    QueryBlock block{a, kv_head, static_cast<int>(left < fits ? left : fits), {}, {}, {}, {}};
    for (int i = 0; i < block.count; ++i) {
      block.row[i] = (first + i) / group;
      const std::int64_t column = (kv_head * group + (first + i) % group) * dim;
      block.q[i] = a.q.data + block.row[i] * a.q.stride + column;
      block.out[i] = a.out.data + block.row[i] * a.out.stride + column;
      block.scores[i] = scores + i * stride;
    }
    attend<V>(block, wide);
  }
}

// Units are kv_head * rows + row. The scratch must hold attention_least_scratch of the longest path.
template <VectorBackend V>
void attention(const AttentionArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  while (begin < end) {
    const std::int64_t kv_head = begin / a.q.rows;
    const std::int64_t first = begin % a.q.rows;
    const std::int64_t count = end - begin < a.q.rows - first ? end - begin : a.q.rows - first;
    attend_rows<V>(a, kv_head, first, first + count, scratch);
    begin += count;
  }
}

}  // namespace
}  // namespace penstock
