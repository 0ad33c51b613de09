// The exponents of a packed row: levels to depths, classes and depths to exponents, then patches.
//
// An exponent is kept rotated right by one bit, since a BF16 weight's low byte begins with the exponent's lowest bit and
// its high byte ends with the other seven.
#pragma once

#include "kernels/generic/packed_row.h"

namespace penstock {
namespace {

constexpr std::uint8_t rotated(int exponent) {
  return static_cast<std::uint8_t>((exponent >> 1 & 0x7f) | exponent << 7);
}

// What class c and depth d (how many bits of the levels are set) stand for is at 7 + c - d.
struct ExponentTable {
  std::uint8_t at[16];
  ExponentTable() = default;
  explicit ExponentTable(int unit) {
    for (int i = 0; i < 16; ++i) at[i] = rotated(unit - 9 + i);
  }
};

// 57 bits or more of a string, from bit `begin` on.
std::uint64_t bits_at(const std::uint8_t* string, std::int64_t begin) {
  return load_word<std::uint64_t>(string + (begin >> 3)) >> (begin & 7);
}

// The depths of a row's weights of class 0, in their order, as three strings of bits. Bit i of level k + 1 belongs to
// the i-th bit set of level k; so going from the deepest level up, depths are deposited where a level has bits set. The
// number of bits set is written as binary by xor: its lowest bit is that of levels 1 to 7, the next that of 2, 4 and 6,
// the highest that of 4.
template <class G, int O>
class DepthPlanes {
 public:
  static constexpr std::int64_t string_bytes(std::int64_t groups) { return groups * kMostClass0 / 8 + 8; }
  static constexpr std::int64_t scratch_bytes(std::int64_t groups) { return O * 6 * string_bytes(groups); }

  bool find(const PackedRow (&row)[O], RowParts (&parts)[O], std::uint8_t* scratch) {
    scratch_ = scratch;
    for (int o = 0; o < O; ++o) {
      if (!find_parts(row[o], parts[o])) return false;
    }
    parts_ = parts;
    return true;
  }

  void expand(const PackedRow (&row)[O]) {
    for (int o = 0; o < O; ++o) {
      plane_ = planes_[o];
      expand(parts_[o], row[o], scratch_ + o * 6 * string_bytes(row[o].groups));
    }
  }

  void expand(const RowParts& parts, const PackedRow& row, std::uint8_t* scratch) {
    const std::int64_t size = string_bytes(row.groups);
    std::uint8_t* even[3] = {scratch, scratch + size, scratch + 2 * size};
    std::uint8_t* odd[3] = {scratch + 3 * size, scratch + 4 * size, scratch + 5 * size};
    plane_[0] = parts.level[6].data;
    expand<6>(parts.level[5], even);
    plane_[1] = parts.level[5].data;
    expand<5>(parts.level[4], odd);
    expand<4>(parts.level[3], even);
    plane_[2] = parts.level[3].data;
    expand<3>(parts.level[2], odd);
    expand<2>(parts.level[1], even);
    expand<1>(parts.level[0], odd);
  }

  // Gives the exponents of a row, group after group.
  class Reader {
   public:
    Reader(const DepthPlanes& depths, const PackedRow& row, int o) : table_(row.unit) {
      for (int i = 0; i < 3; ++i) plane_[i] = depths.planes_[o][i];
    }
    [[gnu::always_inline]] inline void step(const std::uint8_t* coarse, std::uint8_t* out) {
      const std::uint64_t low = load_word<std::uint64_t>(coarse), high = load_word<std::uint64_t>(coarse + 8);
      const std::uint64_t class0 = ~(low | high);
      G::store_exponents(out, table_.at, low, high, G::deposit(bits_at(plane_[0], next_), class0),
                         G::deposit(bits_at(plane_[1], next_), class0), G::deposit(bits_at(plane_[2], next_), class0));
      next_ += __builtin_popcountll(class0);
    }

   private:
    ExponentTable table_;
    const std::uint8_t* plane_[3];
    std::int64_t next_ = 0;
  };

 private:
  // From planes for the bits of level kLevel + 1 to planes for those of kLevel, 56 bits at a time.
  template <int kLevel>
  [[gnu::always_inline]] void expand(const Level& level, std::uint8_t* const (&out)[3]) {
    std::int64_t next = 0;
    for (std::int64_t byte = 0; 8 * byte < level.bits; byte += 7) {
      const std::uint64_t mask = level.word<56>(byte);
      store(out[0] + byte, mask ^ G::deposit(bits_at(plane_[0], next), mask));
      if constexpr (kLevel < 6) {
        store(out[1] + byte, (kLevel % 2 == 0 ? mask : 0) ^ G::deposit(bits_at(plane_[1], next), mask));
      }
      if constexpr (kLevel < 4) store(out[2] + byte, G::deposit(bits_at(plane_[2], next), mask));
      next += __builtin_popcountll(mask);
    }
    plane_[0] = out[0];
    if (kLevel < 6) plane_[1] = out[1];
    if (kLevel < 4) plane_[2] = out[2];
  }
  static void store(std::uint8_t* p, std::uint64_t word) { __builtin_memcpy(p, &word, 8); }

  std::uint8_t* scratch_;
  const RowParts* parts_;
  const std::uint8_t** plane_;
  const std::uint8_t* planes_[O][3];
};

// Replaces the exponents that the row lists; false if one lies past the end, or there are more or fewer bytes than the
// row has.
bool apply_patches(const PackedRow& row, const RowParts& parts, std::uint8_t* exponents) {
  const std::uint8_t named[4] = {rotated(row.unit + 2), rotated(row.unit + 3), rotated(row.unit - 10), 0};
  const std::uint8_t* literal = parts.literals;
  const std::uint8_t* const last = row.data + row.bytes;
  const std::uint64_t end = static_cast<std::uint64_t>(row.groups * kGroupWeights);
  std::uint64_t position = 0, patch = 0;
  bool bad = false;
  for (std::int64_t i = 0; i < parts.n_gaps; ++i) {
    const unsigned gap = parts.gaps[i];
    const bool is_patch = gap != 255;
    position += gap;
    const unsigned value = parts.values[patch >> 2] >> (patch & 3) * 2 & 3;
    const bool is_literal = is_patch & (value == 3), is_inside = is_patch & (position < end);
    bad |= (is_patch ^ is_inside) | (is_literal & (literal == last));
    std::uint8_t ignored;
    std::uint8_t* target = is_inside ? exponents + position : &ignored;
    *target = value == 3 ? rotated(*literal) : named[value];
    literal += is_literal & (literal != last);
    position += is_patch;
    patch += is_patch;
  }
  return !bad && literal == last;
}

// The exponents of all positions of a row that is sound and not raw; false if its data break the format.
template <class G>
bool unpack_exponents(const PackedRow& row, std::uint8_t* out, std::uint8_t* scratch) {
  RowParts parts[1];
  typename G::template Depths<1> depths;
  const PackedRow rows[1] = {row};
  if (!depths.find(rows, parts, scratch)) return false;
  depths.expand(rows);
  typename G::template Depths<1>::Reader reader(depths, row, 0);
  for (std::int64_t g = 0; g < row.groups; ++g) reader.step(row.coarse + g * kGroupCoarseBytes, out + g * kGroupWeights);
  return apply_patches(row, parts[0], out);
}

}  // namespace
}  // namespace penstock
