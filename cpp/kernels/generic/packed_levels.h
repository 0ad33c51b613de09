// The strings of bits of packed rows that tell the depths of weights of class 0: how long they are, and copies to read.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/packed_row.h"
#include "kernels/generic/unroll.h"
#include "kernels/packed_scratch.h"

namespace penstock {
namespace {

std::int64_t count_class0(const PackedRow& row, bool& too_many) {
  std::int64_t n = 0, most = 0;
  for (std::int64_t g = 0; g < row.groups; ++g) {
    const std::uint8_t* coarse = row.group_coarse(g);
    const std::int64_t count =
        64 - __builtin_popcountll(load_word<std::uint64_t>(coarse) | load_word<std::uint64_t>(coarse + 8));
    most = count > most ? count : most;
    n += count;
  }
  too_many = most > kMostClass0;
  return n;
}

// Of O rows, whose levels are copied with zeros behind them, so that rows can be read in step, as far as the longest
// goes. Loops over one row after the other would end at unforeseen moments, and each row is one chain of work.
template <GroupBits G, int O>
class Levels {
 public:
  // False if the rows' data are too short, a group has too many weights of class 0, or bits that fill up a byte are not
  // zero. The rows are sound, and not raw.
  bool find(const PackedRow (&row)[O], std::uint8_t* scratch) {
    std::int64_t bits[O];
    bool good = true;
    for (int o = 0; o < O; ++o) {
      if (row[o].end - row[o].data < row[o].groups * kGroupMantissaBytes) return false;
      bool too_many;
      bits[o] = count_class0(row[o], too_many);
      good &= !too_many;
      patches[o] = row[o].mantissas(row[o].groups);
    }
    for (int level = 0; level < kLevels && good; ++level) {
      scratch = copy(level, row, bits, scratch);
      good = scratch != nullptr;
    }
    return good;
  }

  // Bits of `level`, 0 to 6, of the row with the most.
  std::int64_t bits(int level) const { return bits_[level]; }
  const std::uint8_t* of(int level, int o) const { return data_[level] + o * stride_[level]; }

  const std::uint8_t* patches[O];  // where the levels end

 private:
  // From the level's length to the next one's. Returns the rest of scratch, or null.
  std::uint8_t* copy(int level, const PackedRow (&row)[O], std::int64_t (&bits)[O], std::uint8_t* scratch) {
    std::int64_t most = 0;
    bool good = true;
    for (int o = 0; o < O; ++o) {
      most = bits[o] > most ? bits[o] : most;
      good &= (bits[o] + 7) >> 3 <= row[o].end - patches[o];
    }
    if (!good) return nullptr;
    bits_[level] = most;
    stride_[level] = align_chunk((most + 7) >> 3);
    data_[level] = scratch;
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) {
      const std::int64_t bytes = (bits[o] + 7) >> 3;
      good &= (bits[o] & 7) == 0 || patches[o][bytes - 1] >> (bits[o] & 7) == 0;
      bits[o] = G::copy_and_count(scratch + o * stride_[level], stride_[level], patches[o], bytes, row[o].chunk_end);
      patches[o] += bytes;
    }
    return good ? scratch + O * stride_[level] : nullptr;
  }

  std::uint8_t* data_[kLevels];
  std::int64_t stride_[kLevels];
  std::int64_t bits_[kLevels];
};

}  // namespace
}  // namespace penstock
