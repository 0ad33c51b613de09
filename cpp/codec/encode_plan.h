// How the encoder stores a row: its unit S, and how long every part of its data is then.
#pragma once

#include <cstdint>

#include "codec/layout.h"

namespace penstock {

struct RowPlan {
  int unit;
  std::int64_t level_bits[kLevels];
  std::int64_t gaps;      // bytes of gaps
  std::int64_t patches;   // gaps other than 255
  std::int64_t literals;  // patches whose exponent is a byte
  std::int64_t bytes;     // of the row's data in the fine chunk
};

// The exponent of the BF16 weight at p.
static inline int exponent_at(const std::uint8_t* p) { return (p[1] << 1 & 0xff) | p[0] >> 7; }

// Whether a weight of this exponent is patched: S - 9 to S + 1, modulo 256, are not.
static inline bool is_patched(int exponent, int unit) { return ((exponent - unit + 9) & 0xff) > 10; }

// Whether the row is raw for its size or its patches alone.
static inline bool does_not_pay(const RowPlan& plan, std::int64_t cols) {
  return plan.bytes >= 2 * cols || plan.gaps > kMostPatchGaps;
}

// How to store the row, whether or not it must be raw in the end: the shortest way (of several that with the greatest
// unit), or the one with a unit twice as large, where the coarse tier comes so much closer to the weights.
RowPlan plan_row(const std::uint8_t* row, std::int64_t cols);

}  // namespace penstock
