// The arguments of the kernels that draft: products of int8 activations with weights of 8 or 16 levels.
//
// A draft only proposes tokens, so it may be coarse; but its bits, too, are the same for every instruction set and
// number of threads. A level is an integer from -63 to 63, kept as a byte 64 + level, so that products with signed
// activations add up exactly in 16-bit pairs.
//
// Like kernels.h, it must hold nothing that emits code.
#pragma once

#include "codec/layout.h"
#include "kernels/rows.h"

namespace penstock {

inline constexpr int kZeroLevel = 64;
inline constexpr int kMostLevel = 63;

// Activations, and the scales of nibbles, go by blocks of so many columns.
inline constexpr std::int64_t kBlockColumns = 512;
inline constexpr std::int64_t kBlockGroups = kBlockColumns / kGroupWeights;
static constexpr std::int64_t blocks_of(std::int64_t cols) { return divide_up(cols, kBlockColumns); }

// A block of activations as int8, in the order of positions (codec/layout.h), filled up with zeros to whole groups: its
// 512 bytes; for each of 16 lanes, which have four adjacent bytes of each group, -64 times their sum as an int32; the
// scale, a float: what 1 stands for. A block with a value that is not finite is zeros with the scale NaN.
inline constexpr std::int64_t kBlockSums = kBlockColumns;
inline constexpr std::int64_t kBlockScale = kBlockSums + 64;
inline constexpr std::int64_t kBlockBytes = kBlockScale + 64;

// Rows of blocks, all adjacent, 64-byte aligned.
struct QuantizedRows {
  const std::uint8_t* data;
  std::int64_t rows;
  std::int64_t cols;
};

struct QuantizeRowsArgs {
  Rows<const float> x;
  std::uint8_t* out;
};

// The coarse chunks of a packed matrix (docs/format.md), and what their classes stand for. A weight of row i is
// scales[i] times magnitudes[i][class], negative where its sign bit is set; magnitudes above kMostLevel count as that.
struct CoarseMatrix {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t rows_per_chunk;
  const std::uint8_t* const* chunks;
  const std::uint8_t* magnitudes;
  const float* scales;
};

// How many weights of each row are in each class: counts [rows][4]; and the rows' units.
struct CountClassesArgs {
  CoarseMatrix w;  // without magnitudes and scales
  std::int32_t* counts;
  std::uint8_t* units;
};

// What the weights of a coarse matrix stand for: out [rows][cols].
struct WidenCoarseArgs {
  CoarseMatrix w;
  float* out;
};

// out[r, i] = dot(x[r], w[i]) (+ bias[i]) (+ out[r, i]). Within a block, 16 lanes of exact integer sums; these, as
// floats, times the block's scale, are added up block by block; then the lanes in one tree.
struct MatmulCoarseArgs {
  QuantizedRows x;  // at most kDraftRows
  CoarseMatrix w;
  const float* bias;  // or null
  bool accumulate;
  Rows<float> out;
};

// Weights of 16 levels, 32 bytes a group: position p's in the low half of byte p, p + 32's in its high half. Each block
// of each row has a scale: scales [rows][blocks].
struct NibbleMatrix {
  std::int64_t rows;
  std::int64_t cols;
  const std::uint8_t* data;
  const float* scales;
};
inline constexpr std::int64_t kGroupNibbleBytes = kGroupWeights / 2;

// As MatmulCoarseArgs; each block's sums are multiplied by x's scale, then by w's.
struct MatmulNibblesArgs {
  QuantizedRows x;
  NibbleMatrix w;
  const float* bias;  // or null
  bool accumulate;
  Rows<float> out;
};

// BF16 weights, row-major, at any alignment; those that are not finite count as 0.
struct QuantizeNibblesArgs {
  const std::uint8_t* weights;
  std::int64_t rows;
  std::int64_t cols;
  std::uint8_t* data;
  float* scales;
};

// out[r, i] += factors[r, 0] levels[0, i] + factors[r, 1] levels[1, i] + ..., in this order, each product and each sum
// rounded; levels are row-major [factors.cols][out.cols].
struct AddLevelsArgs {
  Rows<const float> factors;  // cols at most kMostLevelRows
  const std::int8_t* levels;
  Rows<float> out;
};
inline constexpr std::int64_t kMostLevelRows = 256;
inline constexpr std::int64_t kSumColumns = 64;  // that levels are in scratch of, as floats

// So many rows of x are multiplied at a time.
inline constexpr std::int64_t kDraftRows = 64;

// The magnitudes that nibbles stand for, both signs of each: the levels that suit a normal distribution best (Max,
// 1960; Lloyd, 1982), 23 to the standard deviation. Number 8 + k has kNibbleLevels[k], number 7 - k the same below
// zero.
inline constexpr int kNibbleLevels[8] = {3, 9, 15, 22, 29, 37, 48, 63};
inline constexpr float kNibbleDeviation = 23.0f;

}  // namespace penstock
