// Groups of 64 weights, brought into the order of their positions; only for the files beside this one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "codec/layout.h"

namespace penstock {

using Bytes = std::uint8_t[kGroupWeights];  // one for each position
using Words = std::uint16_t[kGroupWeights];

// Bit p is the highest bit of byte p.
static inline std::uint64_t top_bits(const Bytes& bytes) {
  std::uint64_t bits = 0;
#if defined(__SSE2__)
  for (int i = 0; i < 4; ++i) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * i));
    bits |= static_cast<std::uint64_t>(_mm_movemask_epi8(v)) << 16 * i;
  }
#else
  for (int i = 0; i < 8; ++i) {
    std::uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, 8);
    bits |= (eight >> 7 & 0x0101010101010101) * 0x0102040810204080 >> 56 << 8 * i;
  }
#endif
  return bits;
}

// The first `count` of 64 weights, at any address, by position; those that fill up the group have class 1.
static inline void load_group(const std::uint8_t* weights, std::int64_t count, int unit, Words& by_position) {
  Words filled;
  if (count < kGroupWeights) {
    std::fill_n(filled, kGroupWeights, static_cast<std::uint16_t>(((unit - 1) & 0xff) << 7));
    std::memcpy(filled, weights, static_cast<std::size_t>(2 * count));
    weights = reinterpret_cast<const std::uint8_t*>(filled);
  }
  // Position 16 l + 8 h + 2 q + b has weight 32 h + 16 b + 4 l + q: runs of four, two of them interleaved.
  for (int l = 0; l < 4; ++l) {
    for (int h = 0; h < 2; ++h) {
      std::uint16_t four[2][4];
      for (int b = 0; b < 2; ++b) std::memcpy(four[b], weights + 2 * (32 * h + 16 * b + 4 * l), 8);
      std::uint16_t* out = by_position + 16 * l + 8 * h;
      for (int q = 0; q < 4; ++q) {
        out[2 * q] = four[0][q];
        out[2 * q + 1] = four[1][q];
      }
    }
  }
}

// The exponents of a group, and which of them are none of S - 9 to S + 1, modulo 256.
static inline std::uint64_t patched_exponents(const Words& weights, int unit, Bytes& exponents) {
  const std::uint8_t least = static_cast<std::uint8_t>(unit - 9);
  Bytes patched;
  for (int p = 0; p < kGroupWeights; ++p) exponents[p] = static_cast<std::uint8_t>(weights[p] >> 7);
  for (int p = 0; p < kGroupWeights; ++p) {
    patched[p] = static_cast<std::uint8_t>(exponents[p] - least) > 10 ? 0x80 : 0;
  }
  return top_bits(patched);
}

}  // namespace penstock
