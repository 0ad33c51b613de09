// Grouped-query attention over a paged KV cache, in two passes: all scores of a block of query vectors, then, after the
// exact maximum, all weights times values. Nothing is rescaled, so that no result depends on how keys are grouped.
//
// Goals: keys and values are read (and widened) once for a block of query vectors of one kv head; the scratch of a
// thread decides how many that is. Non-goals: splitting the keys of one query vector over threads.
#pragma once

#include "kernels/attention_scratch.h"
#include "kernels/generic/attention_tiles.h"
#include "kernels/generic/exp.h"
#include "kernels/generic/kv.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

constexpr int kMaxQueries = 64;
// With fewer query vectors than this, tiles widen BF16 as they read it; else it is widened first, once for all tiles.
constexpr int kWidenFirst = 8;

// Query vectors of one kv head.
struct QueryBlock {
  std::int64_t kv_head;
  int count;
  const float* q[kMaxQueries];
  float* out[kMaxQueries];
  float* scores[kMaxQueries];
  std::int64_t row[kMaxQueries];
  std::int64_t prefix[kMaxQueries];

  std::int64_t longest_prefix() const {
    std::int64_t longest = 0;
    for (int i = 0; i < count; ++i) longest = prefix[i] > longest ? prefix[i] : longest;
    return longest;
  }
};

std::int64_t tail_length(const AttentionArgs& a, std::int64_t row) {
  return a.tail_offsets[row + 1] - a.tail_offsets[row];
}

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

// The first `count` vectors of a run, widened into `wide`.
template <class V>
Run widen_entries(Run run, std::int64_t count, std::int64_t dim, float* wide) {
  const std::int64_t stride = attention_entry_stride(dim);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint8_t* entry = run.data + i * run.stride;
    if (run.dtype == Dtype::kBF16) widen_run<V, Dtype::kBF16>(entry, dim, wide + i * stride);
    if (run.dtype == Dtype::kF32) widen_run<V, Dtype::kF32>(entry, dim, wide + i * stride);
  }
  return {reinterpret_cast<const std::uint8_t*>(wide), 4 * stride, Dtype::kF32};
}

// One plane (keys or values) of the cache as runs of adjacent logical positions.
template <class V>
struct Plane {
  const KvLayer& kv;
  std::int64_t offset;
  std::int64_t head;
  float* wide;

  std::int64_t run_length() const { return attention_run(kv.block_slots, kv.head_dim); }

  // `count` slots from `slot` on, within a block.
  Run prefix(std::int64_t slot, std::int64_t count, bool widen_first) const {
    const Run run{kv_entry(kv, offset, head, slot), kv.head_dim * item_size(kv.dtype), kv.dtype};
    return widen_first && kv.dtype != Dtype::kF32 ? widen_entries<V>(run, count, kv.head_dim, wide) : run;
  }

  // The given slots and, up to a multiple of 16, repetitions of the last.
  Run gather(const std::int32_t* slots, std::int64_t count) const {
    const std::int64_t stride = attention_entry_stride(kv.head_dim);
    for (std::int64_t i = 0; i < (count + 15) / 16 * 16; ++i) {
      const Run entry{kv_entry(kv, offset, head, slots[i < count ? i : count - 1]), 0, kv.dtype};
      widen_entries<V>(entry, 1, kv.head_dim, wide + i * stride);
    }
    return {reinterpret_cast<const std::uint8_t*>(wide), 4 * stride, Dtype::kF32};
  }

  // Calls f(position, length, run) for each run of the prefix 0 .. longest.
  template <class F>
  void for_prefix(std::int64_t longest, bool widen_first, F f) const {
    for (std::int64_t at = 0; at < longest; at += run_length()) {
      const std::int64_t length = longest - at < run_length() ? longest - at : run_length();
      f(at, length, prefix(at, (length + 15) / 16 * 16, widen_first));
    }
  }

  // Calls f(begin, end, position, length, run) for each run of the tail that query vectors begin .. end (a row) share.
  template <class F>
  void for_tails(const AttentionArgs& a, const QueryBlock& block, F f) const {
    for (int begin = 0, end; begin < block.count; begin = end) {
      const std::int64_t row = block.row[begin];
      for (end = begin + 1; end < block.count && block.row[end] == row;) ++end;
      const std::int32_t* slots = a.tail_slots + a.tail_offsets[row];
      for (std::int64_t at = 0, total = tail_length(a, row); at < total; at += run_length()) {
        const std::int64_t length = total - at < run_length() ? total - at : run_length();
        f(begin, end, block.prefix[begin] + at, length, gather(slots + at, length));
      }
    }
  }
};

// Scores of `length` keys for query vectors i .. i + kQueries, rounded up to the tile: what is past a row's keys is
// overwritten or never read.
template <class V, int kQueries>
void score_run(const AttentionArgs& a, const QueryBlock& block, int i, std::int64_t at, std::int64_t length, Run run) {
  for (std::int64_t j = 0; j < length; j += 16 / kQueries) {
    const std::uint8_t* keys = run.data + j * run.stride;
    const auto tile =
        run.dtype == Dtype::kBF16 ? score_tile<V, kQueries, Dtype::kBF16> : score_tile<V, kQueries, Dtype::kF32>;
    tile(block.q + i, keys, run.stride, a.kv.head_dim, a.scale, block.scores + i, at + j);
  }
}

template <class V>
void score(const AttentionArgs& a, const QueryBlock& block, float* wide) {
  const Plane<V> keys{a.kv, a.kv.key_offset, block.kv_head, wide};
  keys.for_prefix(block.longest_prefix(), block.count >= kWidenFirst,
                  [&](std::int64_t at, std::int64_t length, Run run) {
                    for_tiles(0, block.count, [&](auto width, int i) {
                      std::int64_t visible = 0;
                      for (int t = i; t < i + width.value; ++t) {
                        visible = block.prefix[t] - at > visible ? block.prefix[t] - at : visible;
                      }
                      score_run<V, width.value>(a, block, i, at, visible < length ? visible : length, run);
                    });
                  });
  keys.for_tails(a, block, [&](int begin, int end, std::int64_t at, std::int64_t length, Run run) {
    for_tiles(begin, end, [&](auto width, int i) { score_run<V, width.value>(a, block, i, at, length, run); });
  });
}

// scores[p] = exp(scores[p] - maximum); returns their sum.
template <class V>
float exponentiate(float* scores, std::int64_t keys) {
  const V infinity = V::broadcast(__builtin_inff());
  const std::int64_t padded = (keys + 15) / 16 * 16;
  if (keys < padded) {  // exp makes zeros of these
    const std::int64_t last = padded - 16;
    V::store(scores + last,
             V::select(V::first(static_cast<int>(keys - last)), V::load(scores + last), V::neg(infinity)));
  }
  V maximum = V::neg(infinity);
  for (std::int64_t p = 0; p < padded; p += 16) maximum = V::max(V::load(scores + p), maximum);
  maximum = V::broadcast(V::reduce_max(maximum));
  V sums = V::zero();
  for (std::int64_t p = 0; p < padded; p += 16) {
    const V weights = exp_lanes(V::sub(V::load(scores + p), maximum));
    V::store(scores + p, weights);
    sums = V::add(sums, weights);
  }
  return V::sum(sums);
}

// out[i] += weights at .. at + count times the first `count` values of the run, for query vectors i .. i + kQueries.
template <class V, int kQueries, Dtype kDtype>
void value_run(const QueryBlock& block, int i, std::int64_t at, int count, const std::uint8_t* values,
               std::int64_t stride, std::int64_t dim) {
  constexpr int kVecs = V::kParts == 1 ? 4 : 1;
  std::int64_t d = 0;
  for (; d + 16 * kVecs <= dim; d += 16 * kVecs) {
    value_tile<V, kQueries, kVecs, kDtype>(block.scores + i, at, values, stride, count, block.out + i, d);
  }
  for (; d + 16 <= dim; d += 16) {
    value_tile<V, kQueries, 1, kDtype>(block.scores + i, at, values, stride, count, block.out + i, d);
  }
  if (d < dim) {
    const int rest = static_cast<int>(dim - d);
    value_rest<V, kQueries, kDtype>(block.scores + i, at, values, stride, count, block.out + i, d, rest);
  }
}

template <class V, int kQueries>
void value_run(const QueryBlock& block, int i, std::int64_t at, std::int64_t from, std::int64_t to, Run run,
               std::int64_t dim) {
  if (from >= to) return;
  const auto add =
      run.dtype == Dtype::kBF16 ? value_run<V, kQueries, Dtype::kBF16> : value_run<V, kQueries, Dtype::kF32>;
  add(block, i, at + from, static_cast<int>(to - from), run.data + from * run.stride, run.stride, dim);
}

template <class V>
void add_values(const AttentionArgs& a, const QueryBlock& block, float* wide) {
  const std::int64_t dim = a.kv.head_dim;
  const Plane<V> values{a.kv, a.kv.value_offset, block.kv_head, wide};
  values.for_prefix(block.longest_prefix(), block.count >= kWidenFirst,
                    [&](std::int64_t at, std::int64_t length, Run run) {
                      const auto visible = [&](int i) {
                        const std::int64_t n = block.prefix[i] - at;
                        return n < 0 ? 0 : n < length ? n : length;
                      };
                      for_tiles(0, block.count, [&](auto width, int i) {
                        std::int64_t common = length;
                        for (int t = i; t < i + width.value; ++t) common = visible(t) < common ? visible(t) : common;
                        value_run<V, width.value>(block, i, at, 0, common, run, dim);
                        for (int t = i; t < i + width.value; ++t) {
                          value_run<V, 1>(block, t, at, common, visible(t), run, dim);
                        }
                      });
                    });
  values.for_tails(a, block, [&](int begin, int end, std::int64_t at, std::int64_t length, Run run) {
    for_tiles(begin, end, [&](auto width, int i) { value_run<V, width.value>(block, i, at, 0, length, run, dim); });
  });
}

template <class V>
void scale_lanes(float* out, std::int64_t dim, float divisor) {
  for (std::int64_t d = 0; d < dim; d += 16) {
    const int count = dim - d < 16 ? static_cast<int>(dim - d) : 16;
    V::store(out + d, V::div(V::load(out + d, count), V::broadcast(divisor)), count);
  }
}

template <class V>
void attend(const AttentionArgs& a, const QueryBlock& block, float* wide) {
  float sums[kMaxQueries];
  score<V>(a, block, wide);
  for (int i = 0; i < block.count; ++i) {
    sums[i] = exponentiate<V>(block.scores[i], block.prefix[i] + tail_length(a, block.row[i]));
    for (std::int64_t d = 0; d < a.kv.head_dim; ++d) block.out[i][d] = 0.0f;
  }
  add_values<V>(a, block, wide);
  for (int i = 0; i < block.count; ++i) scale_lanes<V>(block.out[i], a.kv.head_dim, sums[i]);
}

template <class V>
void attend_rows(const AttentionArgs& a, std::int64_t kv_head, std::int64_t begin, std::int64_t end, Scratch scratch) {
  const std::int64_t dim = a.kv.head_dim;
  const std::int64_t group = a.heads / a.kv.kv_heads;
  std::int64_t keys = 0;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t n = a.prefix[row] + tail_length(a, row);
    keys = n > keys ? n : keys;
  }
  float* wide = reinterpret_cast<float*>(scratch.data);
  float* scores = wide + attention_run(a.kv.block_slots, dim) * attention_entry_stride(dim);
  const std::int64_t room = static_cast<std::int64_t>(scratch.bytes / sizeof(float)) - (scores - wide);
  std::int64_t fits = room / attention_score_stride(keys);
  if (fits > kMaxQueries) fits = kMaxQueries;
  if (fits > 4) fits -= fits % 4;

  // Query vectors are counted row by row, the heads of the group within a row.
  for (std::int64_t first = begin * group; first < end * group; first += fits) {
    QueryBlock block;
    block.kv_head = kv_head;
    block.count = static_cast<int>(end * group - first < fits ? end * group - first : fits);
    for (int i = 0; i < block.count; ++i) {
      const std::int64_t row = (first + i) / group;
      const std::int64_t column = (kv_head * group + (first + i) % group) * dim;
      block.q[i] = a.q.data + row * a.q.stride + column;
      block.out[i] = a.out.data + row * a.out.stride + column;
      block.scores[i] = scores + i * attention_score_stride(keys);
      block.row[i] = row;
      block.prefix[i] = a.prefix[row];
    }
    attend<V>(a, block, wide);
  }
}

// Units are kv_head * rows + row. The scratch must hold attention_least_scratch of the longest path.
template <class V>
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
