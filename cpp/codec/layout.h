// Sizes and places in packed weights, as docs/format.md has them.
//
// Also read by files compiled for different instruction sets, so it holds nothing that emits code by itself.
#pragma once

#include <cstdint>

namespace penstock {

static constexpr std::int64_t kGroupWeights = 64;
static constexpr std::int64_t kGroupCoarseBytes = 24;    // low, high, sign
static constexpr std::int64_t kGroupMantissaBytes = 56;  // of 64 mantissas with 7 bits each
static constexpr int kLevels = 7;
static constexpr int kMostClass0 = 56;  // weights of class 0 in a group of a row that is not raw
static constexpr std::int64_t kMostPatchGaps = 65535;
static constexpr std::int64_t kChunkAlignment = 64;
static constexpr std::int64_t kSpareBytes = 8;  // zeros after the rows of a fine chunk
static constexpr std::uint32_t kRawRow = 1u << 31;

// Rows may have at most so many weights.
static constexpr std::int64_t kMostColumns = 1 << 18;
// So that every offset into a fine chunk fits into 31 bits.
static constexpr std::int64_t kMostChunkWeights = 1 << 28;

static constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
static constexpr std::int64_t groups_of(std::int64_t cols) { return divide_up(cols, kGroupWeights); }
static constexpr std::int64_t align_chunk(std::int64_t bytes) {
  return divide_up(bytes, kChunkAlignment) * kChunkAlignment;
}

// Of a coarse chunk: the bytes before the first group, all bytes, and these with padding.
static constexpr std::int64_t unit_bytes(std::int64_t rows) { return divide_up(rows, 8) * 8; }
static constexpr std::int64_t bare_coarse_bytes(std::int64_t rows, std::int64_t cols) {
  return unit_bytes(rows) + rows * groups_of(cols) * kGroupCoarseBytes;
}
static constexpr std::int64_t coarse_bytes(std::int64_t rows, std::int64_t cols) {
  return align_chunk(bare_coarse_bytes(rows, cols));
}

// Of a fine chunk: the bytes before the first row, and all bytes with padding, if all rows are raw, which is the most.
static constexpr std::int64_t offset_bytes(std::int64_t rows) { return 4 * (rows + 1); }
static constexpr std::int64_t most_fine_bytes(std::int64_t rows, std::int64_t cols) {
  return align_chunk(offset_bytes(rows) + rows * cols * 2 + kSpareBytes);
}

// The weight at a position of its group.
static constexpr int weight_at(int position) {
  const int l = position >> 4, h = position >> 3 & 1, q = position >> 1 & 3, b = position & 1;
  return 32 * h + 16 * b + 4 * l + q;
}

}  // namespace penstock
