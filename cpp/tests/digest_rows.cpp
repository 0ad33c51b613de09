// What is done to rows and elements, and routing.
#include "digest.h"

namespace penstock {
namespace {

constexpr std::int64_t kColumns[] = {1, 15, 16, 33, 100, 517};

void rms_norm(const Kernels& table, Digest& digest) {
  for (const std::int64_t cols : kColumns) {
    for (const bool rough : {false, true}) {
      Random random(static_cast<std::uint32_t>(cols));
      const Matrix x(7, cols, random, rough);
      const std::vector<float> weight = random.values(cols);
      Matrix out(7, cols, random);
      run_in_parts(table.rms_norm, {x, weight.data(), 1e-5f, out}, 7, {nullptr, 0});
      digest.add(out.values());
    }
  }
}

void gated(const Kernels& table, Digest& digest) {
  for (const std::int64_t cols : kColumns) {
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      Random random(static_cast<std::uint32_t>(cols));
      const Matrix gate(5, cols, random, true), up(5, cols, random, true);
      Matrix out(5, cols, random);
      run_in_parts(table.gated, {gate, up, activation, out}, cols, {nullptr, 0});
      digest.add(out.values());
    }
  }
}

void scale(const Kernels& table, Digest& digest) {
  for (const std::int64_t cols : kColumns) {
    for (const float cap : {0.0f, 0.7f}) {
      Random random(static_cast<std::uint32_t>(cols));
      Matrix x(5, cols, random, true);
      run_in_parts(table.scale, {x, 1.7f, 0.3f, cap}, cols, {nullptr, 0});
      digest.add(x.values());
    }
  }
}

void add_rows(const Kernels& table, Digest& digest) {
  const std::int32_t at[5] = {3, 0, 3, 7, 1};
  for (const std::int64_t cols : kColumns) {
    Random random(static_cast<std::uint32_t>(cols));
    const Matrix x(5, cols, random, true);
    const std::vector<float> factors = random.values(5);
    Matrix out(8, cols, random, true);
    run_in_parts(table.add_rows, {x, at, factors.data(), out}, cols, {nullptr, 0});
    run_in_parts(table.add_rows, {x, nullptr, factors.data(), out}, cols, {nullptr, 0});
    digest.add(out.values());
  }
}

struct Routing {
  std::int64_t experts, groups, kept_groups, chosen;
  bool sigmoid, renormalize, has_bias, rough;
};
constexpr Routing kRoutings[] = {
    {8, 1, 1, 2, false, true, false, false},  {60, 1, 1, 4, false, false, false, false},
    {64, 8, 3, 8, true, true, true, false},   {128, 1, 1, 8, false, true, false, true},
    {160, 8, 3, 6, true, false, true, true},  {33, 1, 1, 33, true, true, false, false},
    {12, 4, 1, 3, false, false, true, false},
};

void route(const Kernels& table, Digest& digest) {
  for (const Routing& r : kRoutings) {
    Random random(static_cast<std::uint32_t>(r.experts));
    const Matrix logits(9, r.experts, random, r.rough);
    const std::vector<float> bias = random.values(r.experts);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(9 * r.chosen));
    std::vector<float> weights(ids.size());
    Aligned scratch(kLeastScratch);
    const RouteArgs args{logits,        r.has_bias ? bias.data() : nullptr,
                         r.sigmoid,     r.renormalize,
                         2.5f,          r.groups,
                         r.kept_groups, r.chosen,
                         ids.data(),    weights.data()};
    run_in_parts(table.route, args, 9, scratch.scratch());
    digest.add(ids);
    digest.add(weights);
  }
}

void rope(const Kernels& table, Digest& digest) {
  for (const std::int64_t dim : {6, 64, 80, 128}) {
    for (const std::int64_t rotary : {dim, dim / 4 * 2}) {
      Random random(static_cast<std::uint32_t>(dim));
      Matrix x(5, 3 * dim, random);
      const std::vector<float> cos = random.values(5 * rotary / 2), sin = random.values(5 * rotary / 2);
      run_in_parts(table.rope, {x, 3, dim, rotary, cos.data(), sin.data()}, 5, {nullptr, 0});
      digest.add(x.values());
    }
  }
}

// Every 16-bit value once, floats of all kinds, from odd addresses.
void widen(const Kernels& table, Digest& digest) {
  constexpr std::int64_t kItems = 0x10000;
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF16, Dtype::kF32}) {
    Random random(1);
    std::vector<std::uint8_t> bytes(1 + 4 * kItems);
    for (std::int64_t i = 0; i < kItems; ++i) {
      const std::uint32_t item = dtype == Dtype::kF32 ? random.bits() : static_cast<std::uint32_t>(i);
      __builtin_memcpy(bytes.data() + 1 + i * (dtype == Dtype::kF32 ? 4 : 2), &item, dtype == Dtype::kF32 ? 4 : 2);
    }
    for (const std::int64_t n : {kItems, std::int64_t{37}}) {
      std::vector<float> out(static_cast<std::size_t>(n));
      run_in_parts(table.widen, {bytes.data() + 1, dtype, n, out.data()}, n, {nullptr, 0});
      digest.add(out);
    }
  }
}

// A float in 65536, from each end to the other, and many between -110 and 90.
void exp(const Kernels& table, Digest& digest) {
  Random random(2);
  std::vector<float> x;
  for (std::uint32_t i = 0; i < 0x10000; ++i) x.push_back(std::bit_cast<float>(i << 16 | 0x5a5a));
  for (int i = 0; i < 20011; ++i) x.push_back(static_cast<float>(random.below(20000000)) * 1e-5f - 110.0f);
  std::vector<float> out(x.size());
  const std::int64_t n = static_cast<std::int64_t>(x.size());
  run_in_parts(table.exp, {x.data(), n, out.data()}, n, {nullptr, 0});
  digest.add(out);
}

constexpr Case kCases[] = {{"rms_norm", rms_norm}, {"gated", gated}, {"scale", scale}, {"add_rows", add_rows},
                           {"route", route},       {"rope", rope},   {"widen", widen}, {"exp", exp}};

}  // namespace

std::span<const Case> row_cases() { return kCases; }

}  // namespace penstock
