// The exponents that a packed row lists one by one.
#pragma once

#include "kernels/generic/packed_row.h"
#include "kernels/generic/rotated.h"

namespace penstock {
namespace {

// Replaces the exponents of one list, a gap a step: without branches, since gaps and values cannot be foreseen.
class Patches {
 public:
  // False if the list does not end where the row does, if its gaps lead past the last group, or if bits that fill up a
  // byte are not zero.
  [[nodiscard]] bool start(const PackedRow& row, const std::uint8_t* list, std::uint8_t* exponents) {
    if (row.end - list < 2) return false;
    const std::int64_t n_gaps = load_word<std::uint16_t>(list);
    gap_ = list + 2;
    if (n_gaps > row.end - gap_) return false;
    end_ = values_ = gap_ + n_gaps;
    const std::int64_t markers = count_markers(gap_, n_gaps), patches = n_gaps - markers;
    const std::int64_t value_bytes = (patches + 3) >> 2;
    if (value_bytes > row.end - values_) return false;
    literal_ = values_ + value_bytes;
    exponents_ = exponents;
    position_ = patch_ = 0;
    named_ = rotated(row.unit + 2) | rotated(row.unit + 3) << 8 | rotated(row.unit - 10) << 16;
    return sum(gap_, n_gaps) + patches <= row.groups * kGroupWeights &&
           count_threes(values_, value_bytes) == row.end - literal_ &&
           ((patches & 3) == 0 || values_[patches >> 2] >> (patches & 3) * 2 == 0);
  }

  [[gnu::always_inline]] inline void step() {
    const bool more = gap_ != end_;
    const unsigned gap = *gap_;
    const bool is_patch = (gap != 255) & more;
    const unsigned value = values_[patch_ >> 2] >> (patch_ & 3) * 2 & 3;
    const std::uint32_t bytes = named_ | static_cast<std::uint32_t>(rotated(*literal_)) << 24;
    position_ += more ? gap : 0;
    std::uint8_t ignored;
    std::uint8_t* const target = is_patch ? exponents_ + position_ : &ignored;
    *target = static_cast<std::uint8_t>(bytes >> value * 8);
    literal_ += is_patch & (value == 3);
    position_ += is_patch;
    patch_ += is_patch;
    gap_ += more;
  }

  void finish() {
    while (gap_ != end_) step();
  }

 private:
  // Calls f for words that cover n bytes at p; those past the end are zero.
  template <class F>
  static void for_words(const std::uint8_t* p, std::int64_t n, F f) {
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) f(load_word<std::uint64_t>(p + i));
    if (i < n) f(load_word<std::uint64_t>(p + i) & ~(~std::uint64_t{0} << (n - i) * 8));
  }
  static std::int64_t count_markers(const std::uint8_t* p, std::int64_t n) {  // bytes of 255
    std::int64_t count = 0;
    for_words(p, n, [&](std::uint64_t word) {
      word &= word >> 4;
      word &= word >> 2;
      count += __builtin_popcountll(word & word >> 1 & 0x0101010101010101);
    });
    return count;
  }
  static std::int64_t sum(const std::uint8_t* p, std::int64_t n) {
    std::uint64_t sum = 0;
    for_words(p, n, [&](std::uint64_t word) {
      constexpr std::uint64_t kEven = 0x00ff00ff00ff00ff;
      sum += ((word & kEven) + (word >> 8 & kEven)) * 0x0001000100010001 >> 48;
    });
    return static_cast<std::int64_t>(sum);
  }
  static std::int64_t count_threes(const std::uint8_t* p, std::int64_t n) {
    std::int64_t count = 0;
    for_words(p, n, [&](std::uint64_t word) { count += __builtin_popcountll(word & word >> 1 & 0x5555555555555555); });
    return count;
  }

  const std::uint8_t* gap_;
  const std::uint8_t* end_;
  const std::uint8_t* values_;
  const std::uint8_t* literal_;
  std::uint8_t* exponents_;
  std::uint64_t position_;
  std::uint64_t patch_;
  std::uint32_t named_;
};

inline bool apply_patches(const PackedRow& row, const std::uint8_t* list, std::uint8_t* exponents) {
  Patches patches;
  if (!patches.start(row, list, exponents)) return false;
  Patches local = patches;
  local.finish();
  return true;
}

}  // namespace
}  // namespace penstock
