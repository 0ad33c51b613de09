// AArch64's NEON, which every such CPU has: a Vec is four 128-bit registers (generic/backend.h). It flushes no
// denormals, as long as the control register says so (fp_environment.h).
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/generic/unroll.h"

namespace penstock {
namespace {

struct Vec {
  using Part = float32x4_t;
  static constexpr int kParts = 4;
  static constexpr int kTileRows = 3;
  static constexpr int kTileOutputs = 2;
  static constexpr int kRegisters = 32;
  static constexpr bool kWidensOnce = true;
  static constexpr bool kEmulatesFma = false;
  Part part[kParts];

  struct Mask {  // all ones or all zeros, lane by lane
    uint32x4_t part[kParts];
  };

  template <typename F>
  static Vec each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  static Vec zero() { return broadcast(0.0f); }
  static Vec broadcast(float x) {
    return each([&](int) { return vdupq_n_f32(x); });
  }

  static Vec load(const float* p) {
    return each([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static Vec load(const float* p, int count) {
    float copy[16] = {};
    __builtin_memcpy(copy, p, 4 * static_cast<std::size_t>(count));
    return load(copy);
  }
  static Part load_part(const float* p) { return vld1q_f32(p); }
  static void store_part(float* p, Part v) { vst1q_f32(p, v); }
  static void store(float* p, const Vec& v) {
    for (int i = 0; i < kParts; ++i) vst1q_f32(p + 4 * i, v.part[i]);
  }
  static void store(float* p, const Vec& v, int count) {
    float copy[16];
    store(copy, v);
    __builtin_memcpy(p, copy, 4 * static_cast<std::size_t>(count));
  }

  static uint16x4_t load_halves(const std::uint8_t* p) { return vreinterpret_u16_u8(vld1_u8(p)); }
  static Part part_f32(const std::uint8_t* p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
  static Part part_bf16(const std::uint8_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(load_halves(p), 16)); }
  static Part part_f16(const std::uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p))); }
  static Vec load_f32(const std::uint8_t* p) {
    return each([&](int i) { return part_f32(p + 16 * i); });
  }
  static Vec load_bf16(const std::uint8_t* p) {
    return each([&](int i) { return part_bf16(p + 8 * i); });
  }
  static Vec load_f16(const std::uint8_t* p) {
    return each([&](int i) { return part_f16(p + 8 * i); });
  }
  static Vec load_f32(const std::uint8_t* p, int count) { return load(reinterpret_cast<const float*>(p), count); }
  static Vec load_bf16(const std::uint8_t* p, int count) {
    std::uint8_t copy[32] = {};
    __builtin_memcpy(copy, p, 2 * static_cast<std::size_t>(count));
    return load_bf16(copy);
  }
  static Vec load_f16(const std::uint8_t* p, int count) {
    std::uint8_t copy[32] = {};
    __builtin_memcpy(copy, p, 2 * static_cast<std::size_t>(count));
    return load_f16(copy);
  }
  static void store_f32(std::uint8_t* p, const Vec& v, int count) { store(reinterpret_cast<float*>(p), v, count); }
  static uint16x4_t round_bf16(Part v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t sum = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vbsl_u16(vmovn_u32(vceqq_f32(v, v)), vshrn_n_u32(sum, 16), vdup_n_u16(0x7fc0));
  }
  static void store_bf16(std::uint8_t* p, const Vec& v, int count) {
    std::uint8_t copy[32];
    for (int i = 0; i < kParts; ++i) vst1_u8(copy + 8 * i, vreinterpret_u8_u16(round_bf16(v.part[i])));
    __builtin_memcpy(p, copy, 2 * static_cast<std::size_t>(count));
  }

  static Vec add(const Vec& a, const Vec& b) {
    return each([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
  }
  static Vec sub(const Vec& a, const Vec& b) {
    return each([&](int i) { return vsubq_f32(a.part[i], b.part[i]); });
  }
  static Vec mul(const Vec& a, const Vec& b) {
    return each([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
  }
  static Vec div(const Vec& a, const Vec& b) {
    return each([&](int i) { return vdivq_f32(a.part[i], b.part[i]); });
  }
  static Vec sqrt(const Vec& a) {
    return each([&](int i) { return vsqrtq_f32(a.part[i]); });
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return fma(a.part[i], b.part[i], c.part[i]); });
  }
  static Part fma(Part a, Part b, Part c) { return vfmaq_f32(c, a, b); }
  static Part accumulate(Part a, Part b, Part sum) { return fma(a, b, sum); }
  static Part pinned(Part p) {
    __asm__("" : "+w"(p));
    return p;
  }
  static Vec neg(const Vec& a) {
    return each([&](int i) { return vnegq_f32(a.part[i]); });
  }
  // FMAX and FMIN treat NaN and zeros in another way.
  static Part max(Part a, Part b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Vec max(const Vec& a, const Vec& b) {
    return each([&](int i) { return max(a.part[i], b.part[i]); });
  }
  static Vec min(const Vec& a, const Vec& b) {
    return each([&](int i) { return vbslq_f32(vcltq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]); });
  }

  // Lanes j and j + 8, then j and j + 4.
  static Part sum_to_four(const Vec& v) {
    return vaddq_f32(vaddq_f32(v.part[0], v.part[2]), vaddq_f32(v.part[1], v.part[3]));
  }
  static float sum(const Vec& v) {
    const Part four = sum_to_four(v);
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
  }
  // Of a and b, lanes j and j + 2: those of a, then those of b.
  static Part sum_to_two(Part a, Part b) {
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)), vreinterpretq_f32_f64(vzip2q_f64(x, y)));
  }
  static Vec sums(const Vec (&v)[16]) {
    Part two[8];
    PENSTOCK_UNROLL
    for (int i = 0; i < 8; ++i) two[i] = sum_to_two(sum_to_four(v[2 * i]), sum_to_four(v[2 * i + 1]));
    return each([&](int i) { return vpaddq_f32(two[2 * i], two[2 * i + 1]); });
  }
  static float reduce_max(const Vec& v) {
    const Part four = max(max(v.part[0], v.part[2]), max(v.part[1], v.part[3]));
    const Part two = max(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(max(two, vextq_f32(two, two, 1)), 0);
  }

  static Vec round(const Vec& a) { return sub(add(a, broadcast(0x1.8p23f)), broadcast(0x1.8p23f)); }
  static Part pow2(Part a) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127)), 23));
  }
  static Vec pow2(const Vec& a) {
    return each([&](int i) { return pow2(a.part[i]); });
  }

  template <typename F>
  static Mask each_choice(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static Mask less(const Vec& a, const Vec& b) {
    return each_choice([&](int i) { return vcltq_f32(a.part[i], b.part[i]); });
  }
  static Mask first(int count) {
    const std::int32_t numbers[4] = {0, 1, 2, 3};
    return each_choice([&](int i) { return vcgtq_s32(vdupq_n_s32(count - 4 * i), vld1q_s32(numbers)); });
  }
  static Vec select(const Mask& m, const Vec& yes, const Vec& no) {
    return each([&](int i) { return vbslq_f32(m.part[i], yes.part[i], no.part[i]); });
  }
};

}  // namespace
}  // namespace penstock
