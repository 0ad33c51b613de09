// One kv head's keys or values, read from the paged cache as runs of adjacent logical positions.
#pragma once

#include "kernels/attention_scratch.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/kv.h"
#include "kernels/generic/widen.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

struct Run {
  const std::uint8_t* data;
  std::int64_t stride;  // bytes from one vector to the next
  Dtype dtype;
  std::int64_t ahead;  // bytes from a vector to one that will be needed soon, or 0

  Run from(std::int64_t i) const { return {data + i * stride, stride, dtype, ahead}; }

  // Bytes begin .. end of what will be needed soon, into the second-level cache (into the first is slower).
  void prefetch(std::int64_t begin, std::int64_t end) const {
    if (ahead == 0) return;
    for (std::int64_t i = begin; i < end; i += 64) __builtin_prefetch(data + ahead + i, 0, 2);
  }
};

// The keys or the values of one kv head.
template <VectorBackend V>
struct Plane {
  const KvLayer& kv;
  std::int64_t offset;  // of the plane in a block, bytes
  std::int64_t head;
  bool widen_first;  // runs of the prefix are widened as a whole, not by those who read them
  float* wide;       // room for a widened run

  std::int64_t run_length() const { return attention_run(kv.block_slots, kv.head_dim); }
  std::int64_t wide_stride() const { return attention_entry_stride(kv.head_dim); }
  const std::uint8_t* entry(std::int64_t slot) const { return kv_entry(kv, offset, head, slot); }

  void widen(const std::uint8_t* entry, float* out) const {
    if (kv.dtype == Dtype::kBF16) widen_run<V, Dtype::kBF16>(entry, kv.head_dim, out);
    if (kv.dtype == Dtype::kF32) widen_run<V, Dtype::kF32>(entry, kv.head_dim, out);
  }
  Run widened() const { return {reinterpret_cast<const std::uint8_t*>(wide), wide_stride() * 4, Dtype::kF32, 0}; }

  // Slots from `slot` on, to a multiple of 16 that covers `length`: all in one block, be they written or not.
  Run prefix_run(std::int64_t slot, std::int64_t length, bool last) const {
    const Run run{entry(slot), kv.head_dim * item_size(kv.dtype), kv.dtype,
                  last ? 0 : entry(slot + run_length()) - entry(slot)};
    if (!widen_first || kv.dtype == Dtype::kF32) return run;
    for (std::int64_t i = 0; i < (length + 15) / 16 * 16; ++i) widen(run.from(i).data, wide + i * wide_stride());
    return widened();
  }

  // The given slots and, to a multiple of 16, repetitions of the last.
  Run tail_run(const std::int32_t* slots, std::int64_t length) const {
    for (std::int64_t i = 0; i < (length + 15) / 16 * 16; ++i) {
      widen(entry(slots[i < length ? i : length - 1]), wide + i * wide_stride());
    }
    return widened();
  }

  // Calls f(position, length, run) for each run of the first `slots` slots, but those that end before `first`.
  template <class F>
  void for_prefix(std::int64_t first, std::int64_t slots, F f) const {
    for (std::int64_t at = first / run_length() * run_length(); at < slots; at += run_length()) {
      const bool last = slots - at <= run_length();
      const std::int64_t length = last ? slots - at : run_length();
      f(at, length, prefix_run(at, length, last));
    }
  }

  // Calls f(position, length, run) for each run of a tail; positions count from its start.
  template <class F>
  void for_tail(const std::int32_t* slots, std::int64_t count, F f) const {
    for (std::int64_t at = 0; at < count; at += run_length()) {
      const std::int64_t length = count - at < run_length() ? count - at : run_length();
      f(at, length, tail_run(slots + at, length));
    }
  }
};

}  // namespace
}  // namespace penstock
