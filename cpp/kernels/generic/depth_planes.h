// Exponents from levels by depositing bits (pdep).
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/packed_levels.h"
#include "kernels/generic/rotated.h"

namespace penstock {
namespace {

// 57 bits or more of a string, from bit `begin` on.
inline std::uint64_t bits_at(const std::uint8_t* string, std::uint64_t begin) {
  return load_word<std::uint64_t>(string + (begin >> 3)) >> (begin & 7);
}

// The depths of O rows' weights of class 0, in their order, each as three strings of bits. Bit i of a level belongs to
// the i-th bit that is set in the level above it; so going from the deepest level up, depths are deposited where a
// level has bits set. How many levels have a bit set for a weight becomes binary by xor: its lowest bit is that of
// levels 1 to 7, the next one that of 2, 4 and 6, the highest that of 4.
template <GroupDeposit G, int O>
class DepthPlanes {
 public:
  // Uses depth_bytes() of scratch for each row.
  DepthPlanes(const PackedRow (&row)[O], const Levels<G, O>& levels, std::uint8_t* scratch)
      : size_(row[0].groups * 7 + 16), scratch_(scratch) {
    for (int o = 0; o < O; ++o) plane_[o][0] = levels.of(6, o);
    expand<6>(levels);
    for (int o = 0; o < O; ++o) plane_[o][1] = levels.of(5, o);
    expand<5>(levels);
    expand<4>(levels);
    for (int o = 0; o < O; ++o) plane_[o][2] = levels.of(3, o);
    expand<3>(levels);
    expand<2>(levels);
    expand<1>(levels);
  }

  // All exponents of row o.
  void exponents(const PackedRow& row, int o, std::uint8_t* out) const {
    std::uint8_t table[16];
    for (int depth = 0; depth < 8; ++depth) table[depth] = exponent_of_depth(row.unit, depth);
    for (int c = 0; c < 8; ++c) table[8 + c] = exponent_of_class(row.unit, c);
    const typename G::Table entries = G::table_of(table);
    const std::uint8_t* coarse = row.coarse;
    std::uint64_t next = 0;
    for (std::int64_t g = 0; g < row.groups; ++g, coarse += kGroupCoarseBytes, out += kGroupWeights) {
      const std::uint64_t low = load_word<std::uint64_t>(coarse), high = load_word<std::uint64_t>(coarse + 8);
      const std::uint64_t upper = low | high;
      G::store_entries(out, entries, low | G::deposit(bits_at(plane_[o][0], next), ~upper),
                       high | G::deposit(bits_at(plane_[o][1], next), ~upper),
                       G::deposit(bits_at(plane_[o][2], next), ~upper), upper);
      next += static_cast<std::uint64_t>(__builtin_popcountll(~upper));
    }
  }

 private:
  // From planes for the bits of level kLevel + 1 to planes for those of kLevel, 56 bits at a time.
  template <int kLevel>
  void expand(const Levels<G, O>& levels) {
    constexpr int kPlanes = kLevel < 4 ? 3 : kLevel < 6 ? 2 : 1;
    const std::uint8_t* in[O][3];
    const std::uint8_t* level[O];
    std::uint8_t* out[O];
    std::uint64_t next[O];
    for (int o = 0; o < O; ++o) {
      for (int p = 0; p < kPlanes; ++p) in[o][p] = plane_[o][p];
      level[o] = levels.of(kLevel - 1, o);
      out[o] = scratch_ + (kLevel % 2 * O + o) * 3 * size_;
      next[o] = 0;
    }
    const std::int64_t bytes = (levels.bits(kLevel - 1) + 7) >> 3;
    for (std::int64_t byte = 0; byte < bytes; byte += 7) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        const std::uint64_t mask = load_word<std::uint64_t>(level[o] + byte) & 0x00ffffffffffffff;
        const auto deposited = [&](int p) { return G::deposit(bits_at(in[o][p], next[o]), mask); };
        const auto store = [&](int p, std::uint64_t word) { __builtin_memcpy(out[o] + p * size_ + byte, &word, 8); };
        store(0, mask ^ deposited(0));
        if constexpr (kPlanes > 1) store(1, (kLevel % 2 == 0 ? mask : 0) ^ deposited(1));
        if constexpr (kPlanes > 2) store(2, deposited(2));
        next[o] += static_cast<std::uint64_t>(__builtin_popcountll(mask));
      }
    }
    for (int o = 0; o < O; ++o) {
      for (int p = 0; p < kPlanes; ++p) plane_[o][p] = out[o] + p * size_;
    }
  }

  std::int64_t size_;  // bytes from one plane to the next
  std::uint8_t* scratch_;
  const std::uint8_t* plane_[O][3];
};

}  // namespace
}  // namespace penstock
