// Indexed rows: the form in which weights that need not be small stay in memory, at 12.4 bits each and quick to decode.
//
// A BF16 weight is a byte of sign and mantissa, and a 4-bit index into its row's table of 16 exponents. A group of 64
// weights in which an exponent is not in the table is kept whole elsewhere. A row, indexed_row_bytes(cols) long:
//
//   16 bytes        the table, rotated exponents (kernels/generic/rotated.h)
//   32-bit word     the first of the row's exceptions, counted in groups
//   4 bytes         zeros
//   64-bit words    a bit for each group that is an exception, then zeros up to a multiple of 64 bytes
//   32 a group      indices: position p's in the low half of byte p, p + 32's in its high half; up to a multiple of 64
//   64 a group      sign and mantissa of each position (codec/layout.h)
//
// After the rows come the exceptions: their weights as they were, in order, 128 bytes a group.
#pragma once

#include <cstdint>

#include "codec/layout.h"

namespace penstock {

static constexpr std::int64_t kIndexFlags = 24;  // where the flags begin
static constexpr std::int64_t kGroupIndexBytes = kGroupWeights / 2;
static constexpr std::int64_t kExceptionBytes = 2 * kGroupWeights;

static constexpr std::int64_t indexed_header_bytes(std::int64_t cols) {
  return align_chunk(kIndexFlags + 8 * divide_up(groups_of(cols), 64));
}
static constexpr std::int64_t index_bytes(std::int64_t cols) { return align_chunk(groups_of(cols) * kGroupIndexBytes); }
static constexpr std::int64_t indexed_row_bytes(std::int64_t cols) {
  return indexed_header_bytes(cols) + index_bytes(cols) + groups_of(cols) * kGroupWeights;
}

// rows x cols BF16 weights, row-major; `exceptions` [rows]: how many each row has; `out`: rows, then all exceptions.
struct IndexArgs {
  const std::uint8_t* weights;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t* exceptions;
  std::uint8_t* out;
};

// Fills exceptions[begin .. end).
void count_exceptions(const IndexArgs& args, std::int64_t begin, std::int64_t end);
// Writes rows [begin, end) and their exceptions, the first of which is exceptions[row] now: a running sum.
void index_rows(const IndexArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace penstock
