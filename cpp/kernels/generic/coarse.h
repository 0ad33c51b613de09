// The rows of coarse chunks by themselves (docs/format.md).
#pragma once

#include "kernels/draft.h"
#include "kernels/generic/packed_row.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Where a row's unit and its groups are.
struct CoarseRow {
  const std::uint8_t* unit;
  const std::uint8_t* groups;

  CoarseRow(const CoarseMatrix& w, std::int64_t row) {
    const std::int64_t chunk = row / w.rows_per_chunk, index = row % w.rows_per_chunk;
    const std::int64_t left = w.rows - chunk * w.rows_per_chunk;
    const std::uint8_t* units = w.chunks[chunk];
    unit = units + index;
    groups = units + unit_bytes(left < w.rows_per_chunk ? left : w.rows_per_chunk) +
             index * groups_of(w.cols) * kGroupCoarseBytes;
  }
};

void count_classes(const CountClassesArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::int64_t groups = groups_of(a.w.cols);
  for (std::int64_t row = begin; row < end; ++row) {
    const CoarseRow bits(a.w, row);
    const std::uint8_t* group = bits.groups;
    std::int64_t lows = 0, highs = 0, boths = 0;
    for (std::int64_t g = 0; g < groups; ++g, group += kGroupCoarseBytes) {
      const std::uint64_t low = load_word<std::uint64_t>(group), high = load_word<std::uint64_t>(group + 8);
      lows += __builtin_popcountll(low);
      highs += __builtin_popcountll(high);
      boths += __builtin_popcountll(low & high);
    }
    const std::int64_t padding = groups * kGroupWeights - a.w.cols;  // of class 1
    const std::int64_t counts[4] = {a.w.cols - lows - highs + boths + padding, lows - boths - padding, highs - boths,
                                    boths};
    a.units[row] = *bits.unit;
    for (int c = 0; c < 4; ++c) a.counts[row * 4 + c] = static_cast<std::int32_t>(counts[c]);
  }
}

}  // namespace
}  // namespace penstock
