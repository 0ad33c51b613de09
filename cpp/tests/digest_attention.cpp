// Keys and values, and attention over them.
#include "digest.h"
#include "kernels/attention_scratch.h"

namespace penstock {
namespace {

struct Shape {
  std::int64_t rows, heads, kv_heads, dim, slots, block_slots;
  Dtype dtype;
  std::int64_t window;
  float softcap;
};
// More rows than one at a time, so that keys are widened first; heads in fours, pairs and alone; odd dimensions.
constexpr Shape kShapes[] = {
    {1, 4, 1, 64, 70, 32, Dtype::kBF16, 0, 0},     {3, 6, 2, 80, 45, 16, Dtype::kBF16, 20, 0},
    {40, 2, 2, 16, 90, 32, Dtype::kBF16, 0, 0.9f}, {5, 7, 1, 36, 33, 16, Dtype::kF32, 0, 0},
    {9, 8, 2, 128, 130, 64, Dtype::kBF16, 50, 3},  {2, 5, 5, 7, 20, 16, Dtype::kF32, 6, 0},
};

// A layer's cache with nothing in it.
struct Cache {
  std::int64_t plane, blocks;
  Aligned memory;
  std::vector<std::uint8_t*> pointers;
  KvLayer layer;

  explicit Cache(const Shape& s)
      : plane(s.kv_heads * s.block_slots * s.dim * (s.dtype == Dtype::kBF16 ? 2 : 4)),
        blocks((s.slots + s.block_slots - 1) / s.block_slots),
        memory(blocks * 2 * plane) {
    for (std::int64_t b = 0; b < blocks; ++b) pointers.push_back(memory.data() + b * 2 * plane);
    layer = {pointers.data(), blocks, s.block_slots, 0, plane, s.kv_heads, s.dim, s.dtype};
  }
};

// Every slot once, in steps.
void fill(const Kernels& table, const Shape& s, Random& random, Cache& cache, bool rough) {
  std::vector<std::int32_t> slots;
  for (std::int64_t i = 0; i < s.slots; ++i) slots.push_back(static_cast<std::int32_t>(i * 7 % s.slots));
  if (s.slots % 7 == 0) {
    for (std::int64_t i = 0; i < s.slots; ++i) slots[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  }
  const Matrix k(s.slots, s.kv_heads * s.dim, random, rough), v(s.slots, s.kv_heads * s.dim, random, rough);
  run_in_parts(table.store_kv, {k, v, slots.data(), cache.layer}, s.slots, {nullptr, 0});
}

void store_kv(const Kernels& table, Digest& digest) {
  for (const Shape& s : kShapes) {
    Random random(static_cast<std::uint32_t>(s.dim));
    Cache cache(s);
    fill(table, s, random, cache, true);
    if (s.dtype == Dtype::kBF16)
      digest.add(cache.memory.data(), static_cast<std::size_t>(cache.blocks * 2 * cache.plane));
    if (s.dtype == Dtype::kF32) {
      digest.add(reinterpret_cast<const float*>(cache.memory.data()),
                 static_cast<std::size_t>(cache.blocks * 2 * cache.plane / 4));
    }
  }
}

void attention_of(const Kernels& table, Digest& digest, const Shape& s, bool is_roomy) {
  Random random(static_cast<std::uint32_t>(s.dim + 1));
  Cache cache(s);
  fill(table, s, random, cache, false);
  const Matrix q(s.rows, s.heads * s.dim, random);
  std::vector<std::int32_t> prefix, offsets{0}, tail;
  std::int64_t longest = 0;
  for (std::int64_t r = 0; r < s.rows; ++r) {
    prefix.push_back(static_cast<std::int32_t>(random.below(s.slots + 1)));
    const std::int64_t count = random.below(24) + (prefix.back() == 0 ? 1 : 0);
    for (std::int64_t i = 0; i < count; ++i) tail.push_back(static_cast<std::int32_t>(random.below(s.slots)));
    offsets.push_back(static_cast<std::int32_t>(tail.size()));
    longest = prefix.back() + count > longest ? prefix.back() + count : longest;
  }
  Matrix out(s.rows, s.heads * s.dim, random);
  Aligned scratch(is_roomy ? 1 << 20 : attention_least_scratch(longest, s.block_slots, s.dim));
  const AttentionArgs args{q,    s.heads,   prefix.data(), offsets.data(), tail.data(),
                           0.3f, s.softcap, s.window,      cache.layer,    out};
  run_in_parts(table.attention, args, s.kv_heads * s.rows, scratch.scratch());
  digest.add(out.values());
}

void attention(const Kernels& table, Digest& digest) {
  for (const Shape& s : kShapes) {
    for (const bool is_roomy : {true, false}) attention_of(table, digest, s, is_roomy);
  }
}

constexpr Case kCases[] = {{"store_kv", store_kv}, {"attention", attention}};

}  // namespace

std::span<const Case> attention_cases() { return kCases; }

}  // namespace penstock
