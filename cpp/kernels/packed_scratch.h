// Scratch that decoding packed rows takes; also read by those who must say beforehand whether a call fits.
#pragma once

#include "codec/layout.h"

namespace penstock {

// So many rows are decoded at a time, where scratch has room.
static constexpr int kPackedRows = 4;

// From one row's exponents to the next one's in scratch: all rows' at one column must not compete for one set of the
// cache.
static constexpr std::int64_t exponent_stride(std::int64_t groups) { return groups * kGroupWeights + 192; }

// Bytes that one row's levels take, each copied and filled up.
static constexpr std::int64_t level_copy_bytes(std::int64_t groups) {
  return align_chunk(groups * kMostClass0 / 8) + 64;
}

// Bytes that one row's depths take, whatever form they have.
static constexpr std::int64_t depth_bytes(std::int64_t groups) {
  return 2 * (align_chunk(groups * kMostClass0) + 2 * kChunkAlignment);
}

// For decoding `rows` rows at a time.
static constexpr std::int64_t decoder_scratch(std::int64_t cols, int rows) {
  const std::int64_t groups = groups_of(cols);
  return rows * (exponent_stride(groups) + kLevels * level_copy_bytes(groups) + depth_bytes(groups));
}

// A row's weights in pairs (generic/unpack.h).
static constexpr std::int64_t pair_bytes(std::int64_t cols) { return groups_of(cols) * kGroupWeights * 2; }

// Decoded weights that stay in the second level of the cache.
static constexpr std::int64_t kDecodedBytes = 256 << 10;

// The matrix product's own scratch: lanes of 64 rows of x, and a block of widened weights, for each output of a tile.
static constexpr std::int64_t product_scratch(int outputs) { return (64 * 16 + 1024) * outputs * 4; }

// The least that the product with packed weights works with: one row at a time.
static constexpr std::int64_t least_packed_scratch(std::int64_t cols) {
  return decoder_scratch(cols, 1) + pair_bytes(cols) + product_scratch(1);
}

}  // namespace penstock
