// Packed rows back to weights, as pairs for the matrix product or as they were.
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/packed_tiles.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// Rows from `begin` on as pairs, one row after the other: groups of 32 words of 32 bits, whose low and high halves are
// weights 32 h + j and 32 h + 16 + j of the group, for word 16 h + j.
struct PairsJob {
  std::int64_t begin;
  std::int64_t row_bytes;
  std::uint8_t* out;
};

template <class G, int O>
struct PairsSink {
  using Job = PairsJob;
  std::uint8_t* out;
  std::int64_t row_bytes;

  PairsSink(const Job& job, std::int64_t first)
      : out(job.out + (first - job.begin) * job.row_bytes), row_bytes(job.row_bytes) {}
  [[gnu::always_inline]] inline void group(std::int64_t g, int o, const typename G::Pairs& pairs) {
    G::store_pairs(out + o * row_bytes + g * kGroupPairBytes, pairs);
  }
  void finish() {}
};

// As they were, to any address.
struct WeightsJob {
  std::int64_t begin;
  std::int64_t cols;
  std::uint8_t* out;
};

template <class G, int O>
struct WeightsSink {
  using Job = WeightsJob;
  std::uint8_t* out;
  std::int64_t cols;

  WeightsSink(const Job& job, std::int64_t first) : out(job.out + (first - job.begin) * job.cols * 2), cols(job.cols) {}
  [[gnu::always_inline]] inline void group(std::int64_t g, int o, const typename G::Pairs& pairs) {
    std::uint8_t* const to = out + o * cols * 2 + g * kGroupPairBytes;
    const std::int64_t left = cols - g * kGroupWeights;
    if (left >= kGroupWeights) return G::store_weights(to, pairs);
    std::uint8_t last[kGroupPairBytes];
    G::store_weights(last, pairs);
    __builtin_memcpy(to, last, static_cast<std::size_t>(2 * left));
  }
  void finish() {}
};

template <GroupCodec G>
void unpack(const UnpackArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  const WeightsJob job{a.first_row, a.w.cols, a.out};
  walk<G, kPackedRows, 1, WeightsSink>(a.w, a.first_row + begin, a.first_row + end, job,
                                       reinterpret_cast<std::uint8_t*>(scratch.data), a.malformed);
}

}  // namespace
}  // namespace penstock
