// Packed rows back to weights, as pairs for the matrix product or as they were.
#pragma once

#include "kernels/generic/exponents.h"
#include "kernels/generic/packed_row.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

constexpr std::int64_t kGroupPairBytes = 2 * kGroupWeights;

// Keeps the least number.
void report_malformed(std::int64_t* least, std::int64_t row) {
  std::int64_t known = __atomic_load_n(least, __ATOMIC_RELAXED);
  while (row < known && !__atomic_compare_exchange_n(least, &known, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Calls use(group, pairs) for all groups of a row; false, perhaps after some calls, if it breaks the format.
template <class G, class Use>
bool for_each_group(const PackedRow& row, std::int64_t cols, std::uint8_t* scratch, Use use) {
  if (!row.sound) return false;
  if (row.raw) {
    for (std::int64_t g = 0; g < cols / kGroupWeights; ++g) use(g, G::pairs_of(row.data + g * kGroupPairBytes));
    if (const std::int64_t rest = cols % kGroupWeights; rest != 0) {
      std::uint8_t last[kGroupPairBytes] = {};
      __builtin_memcpy(last, row.data + (row.groups - 1) * kGroupPairBytes, static_cast<std::size_t>(2 * rest));
      use(row.groups - 1, G::pairs_of(last));
    }
    return true;
  }
  std::uint8_t* exponents = scratch;
  if (!unpack_exponents<G>(row, exponents, scratch + row.groups * kGroupWeights)) return false;
  for (std::int64_t g = 0; g < row.groups; ++g) {
    use(g, G::compose(exponents + g * kGroupWeights, row.mantissas(g), row.sign(g)));
  }
  return true;
}

// Rows of weights as pairs, one row after the other: groups of 32 words of 32 bits, whose low and high halves are
// weights 32 h + j and 32 h + 16 + j of the group, for word 16 h + j.
template <class G>
void unpack_pairs(const PackedMatrix& w, std::int64_t begin, std::int64_t end, std::uint8_t* out, std::uint8_t* scratch,
                  std::int64_t* malformed) {
  for (std::int64_t row = begin; row < end; ++row) {
    const auto store = [&](std::int64_t g, const typename G::Pairs& pairs) {
      G::store_pairs(out + g * kGroupPairBytes, pairs);
    };
    if (!for_each_group<G>(find_row(w, row), w.cols, scratch, store)) {
      __builtin_memset(out, 0, static_cast<std::size_t>(groups_of(w.cols) * kGroupPairBytes));
      report_malformed(malformed, row);
    }
    out += groups_of(w.cols) * kGroupPairBytes;
  }
}

template <class G>
void unpack(const UnpackArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  for (std::int64_t i = begin; i < end; ++i) {
    std::uint8_t* out = a.out + i * a.w.cols * 2;
    const auto store = [&](std::int64_t g, const typename G::Pairs& pairs) {
      const std::int64_t left = a.w.cols - g * kGroupWeights;
      if (left >= kGroupWeights) return G::store_weights(out + g * kGroupPairBytes, pairs);
      std::uint8_t last[kGroupPairBytes];
      G::store_weights(last, pairs);
      __builtin_memcpy(out + g * kGroupPairBytes, last, static_cast<std::size_t>(2 * left));
    };
    if (for_each_group<G>(find_row(a.w, a.first_row + i), a.w.cols, reinterpret_cast<std::uint8_t*>(scratch.data), store)) {
      continue;
    }
    __builtin_memset(out, 0, static_cast<std::size_t>(2 * a.w.cols));
    report_malformed(a.malformed, a.first_row + i);
  }
}

}  // namespace
}  // namespace penstock
