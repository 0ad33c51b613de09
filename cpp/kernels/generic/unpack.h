// Packed rows back to BF16.
#pragma once

#include "kernels/generic/packed_row.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// The exponents of all positions of a row, in `out`; false if the row breaks the format.
bool unpack_exponents(const PackedRow& row, std::uint8_t* out) {
  RowParts parts;
  if (!find_parts(row, parts)) return false;
  std::int64_t next[kLevels] = {};
  for (std::int64_t i = 0; i < row.groups * kGroupWeights; ++i) {
    const int c = (row.low(i / 64) >> i % 64 & 1) + 2 * (row.high(i / 64) >> i % 64 & 1);
    int depth = 0;
    if (c == 0) {
      while (depth < kLevels) {
        const std::int64_t n = next[depth]++;
        if ((parts.level[depth].data[n / 8] >> n % 8 & 1) == 0) break;
        ++depth;
      }
    }
    out[i] = static_cast<std::uint8_t>(row.unit - 2 + c - depth);
  }
  std::int64_t position = 0, patch = 0;
  for (std::int64_t i = 0; i < parts.n_gaps; ++i) {
    position += parts.gaps[i];
    if (parts.gaps[i] == 255) continue;
    if (position >= row.groups * kGroupWeights) return false;
    const int value = parts.values[patch / 4] >> patch % 4 * 2 & 3;
    ++patch;
    const int difference[] = {2, 3, -10};
    out[position++] = static_cast<std::uint8_t>(value == 3 ? *parts.literals++ : row.unit + difference[value]);
  }
  return true;
}

template <class V>
bool unpack_row(const PackedRow& row, std::int64_t cols, std::uint8_t* out, Scratch scratch) {
  if (!row.sound) return false;
  if (row.raw) {
    __builtin_memcpy(out, row.data, static_cast<std::size_t>(2 * cols));
    return true;
  }
  std::uint8_t* exponents = reinterpret_cast<std::uint8_t*>(scratch.data);
  if (!unpack_exponents(row, exponents)) return false;
  for (std::int64_t g = 0; g < row.groups; ++g) {
    const std::uint8_t* mantissas = row.data + g * kGroupMantissaBytes;
    for (int p = 0; p < kGroupWeights; ++p) {
      const std::int64_t i = g * kGroupWeights + weight_at(p);
      if (i >= cols) continue;
      int mantissa = mantissas[p % 56] & 0x7f;
      if (p >= kGroupMantissaBytes) {
        mantissa = 0;
        for (int j = 0; j < 7; ++j) mantissa |= mantissas[7 * (p - 56) + j] >> 7 << j;
      }
      const std::uint16_t w =
          static_cast<std::uint16_t>((row.sign(g) >> p & 1) << 15 | exponents[g * kGroupWeights + p] << 7 | mantissa);
      __builtin_memcpy(out + 2 * i, &w, 2);
    }
  }
  return true;
}

// Keeps the least number.
void report_malformed(std::int64_t* least, std::int64_t row) {
  std::int64_t known = __atomic_load_n(least, __ATOMIC_RELAXED);
  while (row < known && !__atomic_compare_exchange_n(least, &known, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

template <class V>
void unpack(const UnpackArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  for (std::int64_t i = begin; i < end; ++i) {
    std::uint8_t* out = a.out + i * a.w.cols * 2;
    if (unpack_row<V>(find_row(a.w, a.first_row + i), a.w.cols, out, scratch)) continue;
    __builtin_memset(out, 0, static_cast<std::size_t>(2 * a.w.cols));
    report_malformed(a.malformed, a.first_row + i);
  }
}

}  // namespace
}  // namespace penstock
