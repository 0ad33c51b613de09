// BF16 weights to 16 levels (kernels/draft.h).
#pragma once

#include "kernels/draft.h"
#include "kernels/generic/packed_row.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Number of the level nearest to a magnitude, counted in levels from the least one.
int level_number(float magnitude) {
  int number = 0;
  for (int k = 0; k < 7; ++k) number += magnitude > 0.5f * (kNibbleLevels[k] + kNibbleLevels[k + 1]);
  return number;
}

float level_magnitude(float magnitude) {
  float level = kNibbleLevels[0];
  for (int k = 0; k < 7; ++k) {
    const float step = kNibbleLevels[k + 1] - kNibbleLevels[k];
    level += magnitude > 0.5f * (kNibbleLevels[k] + kNibbleLevels[k + 1]) ? step : 0.0f;
  }
  return level;
}

// Sums over 16 lanes, so that every instruction set adds in one order.
struct LaneSums {
  float lane[16] = {};
  float total() const {
    float sum = 0.0f;
    for (float value : lane) sum += value;
    return sum;
  }
};

// A block's weights, zeros behind the last.
struct NibbleBlock {
  static constexpr int kRounds = 3;

  float weight[kBlockColumns];
  std::int64_t columns;

  NibbleBlock(const std::uint8_t* weights, std::int64_t n) : columns(n) {
    std::uint16_t halves[kBlockColumns] = {};
    __builtin_memcpy(halves, weights, static_cast<std::size_t>(2 * n));
    for (int i = 0; i < kBlockColumns; ++i) {
      const std::uint32_t bits = (halves[i] & 0x7f80) == 0x7f80 ? 0 : static_cast<std::uint32_t>(halves[i]) << 16;
      __builtin_memcpy(&weight[i], &bits, sizeof(bits));
    }
  }

  float deviation() const {
    LaneSums squares;
    for (int i = 0; i < kBlockColumns; i += 16) {
      for (int j = 0; j < 16; ++j) squares.lane[j] += weight[i + j] * weight[i + j];
    }
    return __builtin_sqrtf(squares.total() / static_cast<float>(columns));
  }

  // The scale that suits the levels best which weights have with the scale 1 / inverse (least squares).
  float fitted(float inverse) const {
    LaneSums products, squares;
    for (int i = 0; i < kBlockColumns; i += 16) {
      for (int j = 0; j < 16; ++j) {
        const float magnitude = __builtin_fabsf(weight[i + j]), level = level_magnitude(magnitude * inverse);
        products.lane[j] += magnitude * level;
        squares.lane[j] += level * level;
      }
    }
    const float behind = static_cast<float>(kBlockColumns - columns) * (kNibbleLevels[0] * kNibbleLevels[0]);
    return products.total() / (squares.total() - behind);
  }

  float scale() const {
    float scale = deviation() / kNibbleDeviation;
    for (int round = 0; round < kRounds && scale > 0.0f; ++round) scale = fitted(1.0f / scale);
    return scale;
  }

  void write(float scale, std::uint8_t* out) const {
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    std::uint8_t number[kBlockColumns];
    for (int i = 0; i < kBlockColumns; ++i) {
      const int level = level_number(__builtin_fabsf(weight[i]) * inverse);
      number[i] = static_cast<std::uint8_t>(weight[i] < 0 ? 7 - level : 8 + level);
    }
    for (std::int64_t g = 0; g < groups_of(columns); ++g) {
      for (int p = 0; p < 32; ++p) {
        const std::uint8_t* group = number + g * kGroupWeights;
        out[g * kGroupNibbleBytes + p] = static_cast<std::uint8_t>(group[weight_at(p)] | group[weight_at(p + 32)] << 4);
      }
    }
  }
};

// Units are rows.
void quantize_nibbles(const QuantizeNibblesArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::int64_t blocks = blocks_of(a.cols), row_bytes = groups_of(a.cols) * kGroupNibbleBytes;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t start = b * kBlockColumns, left = a.cols - start;
      const NibbleBlock block(a.weights + 2 * (row * a.cols + start), left < kBlockColumns ? left : kBlockColumns);
      const float scale = block.scale();
      block.write(scale, a.data + row * row_bytes + b * kBlockGroups * kGroupNibbleBytes);
      a.scales[row * blocks + b] = scale;
    }
  }
}

}  // namespace
}  // namespace penstock
