// How attention lays out a thread's scratch; also read by those who must say beforehand whether a call fits.
#pragma once

#include <cstdint>

namespace penstock {

// Keys or values that are widened at a time, so that they stay in the first-level cache. Divides every block of the KV
// cache, which has a power of two slots, 16 or more.
static constexpr std::int64_t attention_run(std::int64_t block_slots, std::int64_t head_dim) {
  return block_slots >= 32 && head_dim <= 128 ? 32 : 16;
}

// Floats from one widened key or value to the next.
static constexpr std::int64_t attention_entry_stride(std::int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Floats from one query vector's scores to the next: room for a tile of 16 that starts at the last key, and an odd
// number of cache lines, lest all query vectors' scores of a key compete for one set of the cache.
static constexpr std::int64_t attention_score_stride(std::int64_t keys) { return ((keys + 30) / 16 | 1) * 16; }

// Bytes that one query vector needs.
static constexpr std::int64_t attention_least_scratch(std::int64_t keys, std::int64_t block_slots,
                                                      std::int64_t head_dim) {
  const std::int64_t run = attention_run(block_slots, head_dim) * attention_entry_stride(head_dim);
  return 4 * (run + attention_score_stride(keys));
}

}  // namespace penstock
