// BF16 weights to 16 levels (kernels/draft.h).
#pragma once

#include "kernels/draft.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/quantize_rows.h"
#include "kernels/generic/unroll.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// A block's weights, zeros behind the last.
template <VectorBackend V>
struct NibbleBlock {
  static constexpr int kRounds = 3;

  float weight[kBlockColumns];
  std::int64_t columns;

  NibbleBlock(const std::uint8_t* weights, std::int64_t n) : columns(n) {
    std::uint8_t halves[2 * kBlockColumns] = {};
    __builtin_memcpy(halves, weights, static_cast<std::size_t>(2 * n));
    for (int i = 0; i < kBlockColumns; i += 16) {
      const V value = V::load_bf16(halves + 2 * i);
      const auto is_finite = V::less(magnitude(value), V::broadcast(__builtin_inff()));
      V::store(weight + i, V::select(is_finite, value, V::zero()));
    }
  }

  static V magnitude(const V& v) { return V::max(v, V::neg(v)); }

  // Of the levels from the least magnitude up, `values[k]` of that nearest to each lane.
  template <typename T>
  static V nearest(const V& magnitudes, const T (&values)[8]) {
    V value = V::broadcast(static_cast<float>(values[0]));
    PENSTOCK_UNROLL
    for (int k = 1; k < 8; ++k) {
      const V bound = V::broadcast(0.5f * (kNibbleLevels[k - 1] + kNibbleLevels[k]));
      value = V::select(V::less(bound, magnitudes), V::broadcast(static_cast<float>(values[k])), value);
    }
    return value;
  }

  float deviation() const {
    V squares = V::zero();
    for (int i = 0; i < kBlockColumns; i += 16) {
      const V value = V::load(weight + i);
      squares = V::add(squares, V::mul(value, value));
    }
    return __builtin_sqrtf(V::sum(squares) / static_cast<float>(columns));
  }

  // The scale that suits the levels best which weights have with the scale 1 / inverse (least squares).
  float fitted(float inverse) const {
    V products = V::zero(), squares = V::zero();
    for (int i = 0; i < kBlockColumns; i += 16) {
      const V value = magnitude(V::load(weight + i));
      const V level = nearest(V::mul(value, V::broadcast(inverse)), kNibbleLevels);
      products = V::add(products, V::mul(value, level));
      squares = V::add(squares, V::mul(level, level));
    }
    const float behind = static_cast<float>(kBlockColumns - columns) * (kNibbleLevels[0] * kNibbleLevels[0]);
    return V::sum(products) / (V::sum(squares) - behind);
  }

  float scale() const {
    float scale = deviation() / kNibbleDeviation;
    for (int round = 0; round < kRounds && scale > 0.0f; ++round) scale = fitted(1.0f / scale);
    return scale;
  }

  void write(float scale, std::uint8_t* out) const {
    constexpr int kUp[8] = {8, 9, 10, 11, 12, 13, 14, 15};
    const V inverse = V::broadcast(scale > 0.0f ? 1.0f / scale : 0.0f), fifteen = V::broadcast(15.0f);
    for (std::int64_t g = 0; g < groups_of(columns); ++g, out += kGroupNibbleBytes) {
      float number[kGroupWeights];
      for (int i = 0; i < kGroupWeights; i += 16) {
        const V value = V::load(weight + g * kGroupWeights + i), up = nearest(V::mul(magnitude(value), inverse), kUp);
        V::store(number + i, V::select(V::less(value, V::zero()), V::sub(fifteen, up), up));
      }
      std::uint8_t bytes[kGroupWeights], ordered[kGroupWeights];
      for (int i = 0; i < kGroupWeights; ++i) bytes[i] = static_cast<std::uint8_t>(static_cast<int>(number[i]));
      to_positions(bytes, ordered);
      for (int i = 0; i < 32; ++i) out[i] = static_cast<std::uint8_t>(ordered[i] | ordered[32 + i] << 4);
    }
  }
};

// Units are rows.
template <VectorBackend V>
void quantize_nibbles(const QuantizeNibblesArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::int64_t blocks = blocks_of(a.cols), row_bytes = groups_of(a.cols) * kGroupNibbleBytes;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t start = b * kBlockColumns, left = a.cols - start;
      const NibbleBlock<V> block(a.weights + 2 * (row * a.cols + start), left < kBlockColumns ? left : kBlockColumns);
      const float scale = block.scale();
      block.write(scale, a.data + row * row_bytes + b * kBlockGroups * kGroupNibbleBytes);
      a.scales[row * blocks + b] = scale;
    }
  }
}

}  // namespace
}  // namespace penstock
