// Exponents from levels by expanding bytes.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/packed_levels.h"
#include "kernels/generic/rotated.h"
#include "kernels/generic/unroll.h"

namespace penstock {
namespace {

// The exponents of O rows' weights of class 0, a byte each: from the deepest level up, those of the next level go where
// a level has bits set, and its own where not.
template <GroupExpansion G, int O>
class DepthBytes {
 public:
  // Uses depth_bytes() of scratch for each row.
  DepthBytes(const PackedRow (&row)[O], const Levels<G, O>& levels, std::uint8_t* scratch)
      : size_(align_chunk(row[0].groups * kMostClass0) + kChunkAlignment) {
    std::uint8_t *in = scratch, *out = scratch + O * size_;
    expand_last(row, levels, in);
    for (int level = kLevels - 2; level >= 0; --level) {
      expand(level, row, levels, in, out);
      std::uint8_t* const done = out;
      out = in;
      in = done;
    }
    bytes_ = in;
  }

  // All exponents of row o.
  void exponents(const PackedRow& row, int o, std::uint8_t* out) const {
    const auto one = of_class(row, 1), two = of_class(row, 2), three = of_class(row, 3);
    const std::uint8_t *coarse = row.coarse, *next = bytes_ + o * size_;
    for (std::int64_t g = 0; g < row.groups; ++g, coarse += kGroupCoarseBytes, out += kGroupWeights) {
      const std::uint64_t low = load_word<std::uint64_t>(coarse), high = load_word<std::uint64_t>(coarse + 8);
      next += G::expand_classes(out, low, high, next, one, two, three);
    }
  }

 private:
  static typename G::Exponents of_class(const PackedRow& row, int c) {
    return G::splat(exponent_of_class(row.unit, c));
  }
  static typename G::Exponents of_depth(const PackedRow& row, int depth) {
    return G::splat(exponent_of_depth(row.unit, depth));
  }

  void expand_last(const PackedRow (&row)[O], const Levels<G, O>& levels, std::uint8_t* out) const {
    for (int o = 0; o < O; ++o) {
      const auto here = of_depth(row[o], kLevels - 1), last = of_depth(row[o], kLevels);
      for (std::int64_t i = 0; i < levels.bits(kLevels - 1); i += 64) {
        G::choose(out + o * size_ + i, load_word<std::uint64_t>(levels.of(kLevels - 1, o) + i / 8), last, here);
      }
    }
  }

  void expand(int level, const PackedRow (&row)[O], const Levels<G, O>& levels, const std::uint8_t* in,
              std::uint8_t* out) const {
    typename G::Exponents here[O];
    const std::uint8_t *next[O], *bits[O];
    for (int o = 0; o < O; ++o) {
      here[o] = of_depth(row[o], level);
      next[o] = in + o * size_;
      bits[o] = levels.of(level, o);
    }
    for (std::int64_t i = 0, n = levels.bits(level); i < n; i += 64) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        next[o] += G::expand(out + o * size_ + i, load_word<std::uint64_t>(bits[o] + (i >> 3)), next[o], here[o]);
      }
    }
  }

  std::int64_t size_;  // from one row's bytes to the next one's
  const std::uint8_t* bytes_;
};

}  // namespace
}  // namespace penstock
