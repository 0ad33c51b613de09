// Activations to int8 (kernels/draft.h).
#pragma once

#include "kernels/draft.h"
#include "kernels/generic/backend.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// The largest magnitude of kBlockColumns values; NaN counts as the largest of all.
float largest_magnitude(const float* x) {
  std::uint32_t most = 0;
  for (int i = 0; i < kBlockColumns; ++i) {
    const std::uint32_t magnitude = bits_of(x[i]) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  float value;
  __builtin_memcpy(&value, &most, sizeof(value));
  return value;
}

// The bytes of a group in the order of positions.
void to_positions(const std::uint8_t* group, std::uint8_t* out) {
  for (int h = 0; h < 2; ++h) {
    std::uint16_t pairs[16];
    for (int i = 0; i < 16; ++i) {
      pairs[i] = static_cast<std::uint16_t>(group[32 * h + i] | group[32 * h + 16 + i] << 8);
    }
    for (int l = 0; l < 4; ++l) __builtin_memcpy(out + 16 * l + 8 * h, pairs + 4 * l, 8);
  }
}

// 64 values times `factor`, which brings them to at most 127, rounded to nearest even.
void quantize_group(const float* x, float factor, std::uint8_t* out) {
  std::uint8_t bytes[kGroupWeights];
  for (int i = 0; i < kGroupWeights; ++i) bytes[i] = static_cast<std::uint8_t>(bits_of(x[i] * factor + 0x1.8p23f));
  to_positions(bytes, out);
}

template <LevelProducts D>
void quantize_block(const float* x, std::int64_t groups, std::uint8_t* out) {
  constexpr float kLeast = 0x1p-100f;  // smaller values are as good as zero, and have no reciprocal
  const float most = largest_magnitude(x);
  const bool is_finite = most < __builtin_inff(), is_zero = !(is_finite && most >= kLeast);
  const float factor = is_zero ? 0.0f : 127.0f / most;
  const float scale = is_zero ? is_finite ? 0.0f : __builtin_nanf("") : most / 127.0f;
  const auto level = D::splat(kZeroLevel);
  auto sums = D::zero_sums();
  for (std::int64_t g = 0; g < groups; ++g) {
    std::uint8_t* group = out + g * kGroupWeights;
    is_zero ? static_cast<void>(__builtin_memset(group, 0, kGroupWeights))
            : quantize_group(x + g * kGroupWeights, factor, group);
    sums = D::dot(sums, level, D::load(group));
  }
  D::store_negated(out + kBlockSums, sums);
  __builtin_memcpy(out + kBlockScale, &scale, sizeof(scale));
}

// Units are blocks, row by row.
template <LevelProducts D>
void quantize_rows(const QuantizeRowsArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
  const std::int64_t blocks = blocks_of(a.x.cols);
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const std::int64_t start = unit % blocks * kBlockColumns, left = a.x.cols - start;
    const float* x = a.x.data + unit / blocks * a.x.stride + start;
    float filled[kBlockColumns];
    if (left < kBlockColumns) {
      for (int i = 0; i < kBlockColumns; ++i) filled[i] = i < left ? x[i] : 0.0f;
      x = filled;
    }
    quantize_block<D>(x, groups_of(left < kBlockColumns ? left : kBlockColumns), a.out + unit * kBlockBytes);
  }
}

}  // namespace
}  // namespace penstock
