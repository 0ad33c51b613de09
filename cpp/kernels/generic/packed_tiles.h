// Walking over packed rows: tile by tile, the exponents of kPackedRows rows are put into scratch; then the weights are
// composed group by group, all in registers, and given away.
//
// Who takes them is a Sink<G, O>: it is made from a job and the number of the first of O rows, gets their weights by
// group(g, o, pairs), and ends with finish().
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/packed_levels.h"
#include "kernels/generic/patches.h"
#include "kernels/generic/unroll.h"

namespace penstock {
namespace {

constexpr std::int64_t kGroupPairBytes = 2 * kGroupWeights;

// Keeps the least number.
void report_malformed(std::int64_t* least, std::int64_t row) {
  std::int64_t known = __atomic_load_n(least, __ATOMIC_RELAXED);
  while (row < known && !__atomic_compare_exchange_n(least, &known, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Finds rows [first, first + O); false if one breaks the format or is raw.
template <int O>
bool find_rows(const PackedMatrix& w, std::int64_t first, PackedRow (&row)[O]) {
  for (int o = 0; o < O; ++o) {
    row[o] = find_row(w, first + o);
    if (!row[o].sound || row[o].raw) return false;
  }
  return true;
}

// The exponents of O rows, exponent_stride() from one to the next, into `out`, which decoder_scratch() follows; false
// if a row breaks the format.
template <GroupCodec G, int O>
bool unpack_exponents(const PackedRow (&row)[O], std::uint8_t* out) {
  const std::int64_t groups = row[0].groups, stride = exponent_stride(groups);
  std::uint8_t* const depth_scratch = out + O * stride;
  Levels<G, O> levels;
  if (!levels.find(row, depth_scratch + O * depth_bytes(groups))) return false;
  const typename G::template Depths<O> depths(row, levels, depth_scratch);
  bool good = true;
  for (int o = 0; o < O; ++o) depths.exponents(row[o], o, out + o * stride);
  for (int o = 0; o < O; ++o) good &= apply_patches(row[o], levels.patches[o], out + o * stride);
  return good;
}

// Gives the weights of O adjacent rows away, whose exponents are known. Fetches as many bytes from `fine` and
// `coarse` on, which will be needed soon.
template <GroupWeights G, int O, class Sink>
void walk_rows(const PackedRow* row, std::int64_t first, const std::uint8_t* exponents, const typename Sink::Job& job,
               const std::uint8_t* fine, const std::uint8_t* coarse) {
  const std::int64_t groups = row[0].groups, stride = exponent_stride(groups);
  const std::uint8_t *mantissas[O], *signs[O];
  for (int o = 0; o < O; ++o) {
    mantissas[o] = row[o].data;
    signs[o] = row[o].coarse + 16;
  }
  Sink sink(job, first);
  for (std::int64_t g = 0; g < groups; ++g) {
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) {
      __builtin_prefetch(fine + (g * O + o) * 64, 0, 2);
      if (o % 2 == 0) __builtin_prefetch(coarse + (g * O + o) * kGroupCoarseBytes, 0, 2);
      const std::uint64_t sign = load_word<std::uint64_t>(signs[o] + g * kGroupCoarseBytes);
      sink.group(g, o,
                 G::compose(exponents + o * stride + g * kGroupWeights, mantissas[o] + g * kGroupMantissaBytes, sign));
    }
  }
  sink.finish();
}

// Gives the weights of the tile away, P rows at a time.
template <GroupCodec G, int O, int P, template <class, int> class Sink>
void walk_tile(const PackedRow (&row)[O], std::int64_t first, const std::uint8_t* exponents,
               const typename Sink<G, P>::Job& job) {
  const std::int64_t groups = row[0].groups;
  for (int o = 0; o < O; o += P) {
    walk_rows<G, P, Sink<G, P>>(row + o, first + o, exponents + o * exponent_stride(groups), job,
                                row[O - 1].end + o * groups * 64,
                                row[O - 1].coarse + (o + 1) * groups * kGroupCoarseBytes);
  }
}

// The same for one row that is raw, or breaks the format, which makes it zeros.
template <GroupWeights G, template <class, int> class Sink>
void walk_irregular(const PackedRow& row, std::int64_t number, std::int64_t cols, const typename Sink<G, 1>::Job& job,
                    std::int64_t* malformed) {
  const bool is_raw = row.sound && row.raw;
  if (!is_raw) report_malformed(malformed, number);
  Sink<G, 1> sink(job, number);
  for (std::int64_t g = 0; g < row.groups; ++g) {
    std::uint8_t weights[kGroupPairBytes] = {};
    const std::int64_t left = cols - g * kGroupWeights, count = left < kGroupWeights ? left : kGroupWeights;
    if (is_raw) __builtin_memcpy(weights, row.data + g * kGroupPairBytes, static_cast<std::size_t>(2 * count));
    sink.group(g, 0, G::pairs_of(weights));
  }
  sink.finish();
}

// Gives the weights of rows [begin, end) away, O rows at a time as far as they go, then one at a time.
template <GroupCodec G, int O, int P, template <class, int> class Sink>
void walk(const PackedMatrix& w, std::int64_t begin, std::int64_t end, const typename Sink<G, P>::Job& job,
          std::uint8_t* scratch, std::int64_t* malformed) {
  PackedRow row[O];
  for (; end - begin >= O; begin += O) {
    if (find_rows(w, begin, row) && unpack_exponents<G>(row, scratch)) {
      walk_tile<G, O, P, Sink>(row, begin, scratch, job);
    } else if constexpr (O == 1) {
      walk_irregular<G, Sink>(row[0], begin, w.cols, job, malformed);
    } else {
      walk<G, 1, 1, Sink>(w, begin, begin + O, job, scratch, malformed);
    }
  }
  if constexpr (O > 1) walk<G, 1, 1, Sink>(w, begin, end, job, scratch, malformed);
}

}  // namespace
}  // namespace penstock
