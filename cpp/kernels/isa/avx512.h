// AVX-512 F, BW, DQ and VL: a Vec is one register (generic/backend.h).
#pragma once

#include <immintrin.h>

#include "kernels/generic/depth_planes.h"
#include "kernels/generic/table.h"

namespace penstock {
namespace {

struct Vec {
  using Part = __m512;
  static constexpr int kParts = 1;
  static constexpr int kTileRows = 6;
  static constexpr int kTileOutputs = 4;
  static constexpr int kRegisters = 32;
  static constexpr bool kWidensOnce = false;  // six rows repay the widening of four weights each time
  static constexpr bool kEmulatesFma = false;
  Part part[kParts];

  using Mask = __mmask16;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
  static Part load_part(const float* p) { return _mm512_loadu_ps(p); }
  static void store_part(float* p, Part v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v.part[0]); }
  static void store(float* p, Vec v, int count) { _mm512_mask_storeu_ps(p, first(count), v.part[0]); }

  static Vec load_f32(const std::uint8_t* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load_f32(const std::uint8_t* p, int count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
  static __m128i load_sixteen(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static __m256i load_halves(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i load_halves(const std::uint8_t* p, int count) { return _mm256_maskz_loadu_epi16(first(count), p); }
  static Part widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
  static Part part_f32(const std::uint8_t* p) { return _mm512_loadu_ps(p); }
  static Part part_bf16(const std::uint8_t* p) { return widen_bf16(load_halves(p)); }
  static Part part_f16(const std::uint8_t* p) { return _mm512_cvtph_ps(load_halves(p)); }
  static Vec load_bf16(const std::uint8_t* p) { return {part_bf16(p)}; }
  static Vec load_bf16(const std::uint8_t* p, int count) { return {widen_bf16(load_halves(p, count))}; }
  static Vec load_f16(const std::uint8_t* p) { return {part_f16(p)}; }
  static Vec load_f16(const std::uint8_t* p, int count) { return {_mm512_cvtph_ps(load_halves(p, count))}; }
  static void store_f32(std::uint8_t* p, Vec v, int count) { _mm512_mask_storeu_ps(p, first(count), v.part[0]); }
  static __m256i round_bf16(Vec v) {
    const __m512i bits = _mm512_castps_si512(v.part[0]);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i rounded = _mm512_srli_epi32(sum, 16);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan(v), _mm512_set1_epi32(0x7fc0)));
  }
  static void store_bf16(std::uint8_t* p, Vec v, int count) {
    _mm256_mask_storeu_epi16(p, first(count), round_bf16(v));
  }

  static Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.part[0], b.part[0])}; }
  static Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.part[0], b.part[0])}; }
  static Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.part[0], b.part[0])}; }
  static Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.part[0], b.part[0])}; }
  static Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.part[0])}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {fma(a.part[0], b.part[0], c.part[0])}; }
  static Part accumulate(Part a, Part b, Part sum) { return fma(a, b, sum); }
  static Part fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
  static Part pinned(Part p) {
    __asm__("" : "+v"(p));
    return p;
  }
  static Vec neg(Vec a) { return {_mm512_xor_ps(a.part[0], _mm512_set1_ps(-0.0f))}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.part[0], b.part[0])}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.part[0], b.part[0])}; }

  static __m256 upper(__m512 v) { return _mm512_extractf32x8_ps(v, 1); }
  static float sum(Vec v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v.part[0]), upper(v.part[0]));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  template <int choice>
  static Part quarters(Part a, Part b) {
    return _mm512_maskz_shuffle_f32x4(0xffff, a, b, choice);  // GCC 12 warns of the plain one
  }
  // Each step adds the halves of two vectors' groups of lanes into one vector; 16, 8, 4, 2 lanes a group.
  static Vec sums(const Vec (&v)[16]) {
    __m512 w[16];
    for (int i = 0; i < 16; ++i) w[i] = v[i / 8 * 4 + i % 2 * 2 + i / 2 % 2 + i / 4 % 2 * 8].part[0];
    for (int i = 0; i < 8; ++i) {
      w[i] = _mm512_add_ps(quarters<0x44>(w[i], w[i + 8]), quarters<0xee>(w[i], w[i + 8]));
    }
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm512_add_ps(quarters<0x88>(w[i], w[i + 4]), quarters<0xdd>(w[i], w[i + 4]));
    }
    for (int i = 0; i < 2; ++i) {
      w[i] = _mm512_add_ps(_mm512_shuffle_ps(w[i], w[i + 2], 0x44), _mm512_shuffle_ps(w[i], w[i + 2], 0xee));
    }
    return {_mm512_add_ps(_mm512_shuffle_ps(w[0], w[1], 0x88), _mm512_shuffle_ps(w[0], w[1], 0xdd))};
  }
  static float reduce_max(Vec v) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v.part[0]), upper(v.part[0]));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static Vec round(Vec a) { return sub(add(a, broadcast(0x1.8p23f)), broadcast(0x1.8p23f)); }
  static Vec pow2(Vec a) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvttps_epi32(a.part[0]), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
  }

  static Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.part[0], b.part[0], _CMP_LT_OQ); }
  static Mask is_nan(Vec a) { return _mm512_cmp_ps_mask(a.part[0], a.part[0], _CMP_UNORD_Q); }
  static Mask first(int count) { return static_cast<Mask>((1u << count) - 1); }
  static Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_mov_ps(no.part[0], m, yes.part[0])}; }
};

struct GroupOps {
  template <int O>
  using Depths = DepthPlanes<GroupOps, O>;
  using Words = __m512i;
  struct Pairs {
    Words part[2][Vec::kParts];
  };

  static __m512i pinned(__m512i v) {
    __asm__("" : "+v"(v));
    return v;
  }
  static std::uint64_t deposit(std::uint64_t bits, std::uint64_t mask) { return _pdep_u64(bits, mask); }
  // Of each 64 bits, the number that is set.
  static __m512i count_bits(__m512i v) {
    const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(counts, _mm512_and_si512(v, low)),
                                          _mm512_shuffle_epi8(counts, _mm512_and_si512(_mm512_srli_epi16(v, 4), low)));
    return _mm512_sad_epu8(bytes, _mm512_setzero_si512());
  }
  template <__m512i (*kCountBits)(__m512i) = count_bits>
  static std::int64_t copy_and_count(std::uint8_t* dst, std::int64_t stride, const std::uint8_t* src,
                                     std::int64_t bytes, const std::uint8_t*) {
    __m512i ones = _mm512_setzero_si512();
    for (std::int64_t i = 0; i < stride; i += 64) {
      const std::int64_t left = bytes - i;
      const __mmask64 some = _bzhi_u64(~std::uint64_t{0}, static_cast<unsigned>(left < 0 ? 0 : left < 64 ? left : 64));
      const __m512i v = _mm512_maskz_loadu_epi8(some, src + i);
      _mm512_storeu_si512(dst + i, v);
      ones = _mm512_add_epi64(ones, kCountBits(v));
    }
    return _mm512_reduce_add_epi64(ones);
  }

  using Table = __m512i;
  static Table table_of(const std::uint8_t (&table)[16]) { return _mm512_broadcast_i32x4(Vec::load_sixteen(table)); }
  static void store_entries(std::uint8_t* out, Table table, std::uint64_t bit0, std::uint64_t bit1, std::uint64_t bit2,
                            std::uint64_t bit3) {
    const auto add = [](__m512i v, __mmask64 where, char n) {
      return _mm512_mask_add_epi8(v, where, v, _mm512_set1_epi8(n));
    };
    const __m512i number = add(add(add(_mm512_maskz_set1_epi8(bit0, 1), bit1, 2), bit2, 4), bit3, 8);
    _mm512_storeu_si512(out, _mm512_shuffle_epi8(table, number));
  }
  static Pairs compose(const std::uint8_t* exponents, const std::uint8_t* mantissas, std::uint64_t sign) {
    const __m512i exponent = pinned(_mm512_loadu_si512(exponents)), stored = pinned(_mm512_loadu_si512(mantissas));
    const std::uint64_t last = _pdep_u64(_mm512_movepi8_mask(stored), 0x7f7f7f7f7f7f7f7f);
    const __m512i mantissa = _mm512_mask_set1_epi64(stored, 0x80, static_cast<long long>(last));
    return compose(exponent, mantissa, sign);
  }
  static Pairs compose(__m512i exponent, __m512i mantissa, std::uint64_t sign) {
    const __m512i seven = _mm512_set1_epi8(0x7f);
    const __m512i low = _mm512_ternarylogic_epi32(mantissa, exponent, seven, 0xe4);  // bit by bit, c ? a : b
    const __m512i high = _mm512_ternarylogic_epi32(_mm512_movm_epi8(sign), exponent, seven, 0xd8);  // c ? b : a
    return {{{_mm512_unpacklo_epi8(low, high)}, {_mm512_unpackhi_epi8(low, high)}}};
  }
  static Pairs indexed(const std::uint8_t* table, const std::uint8_t* halves, const std::uint8_t* bytes) {
    const __m512i entries = _mm512_broadcast_i32x4(Vec::load_sixteen(table));
    const __m512i both = _mm512_broadcast_i64x4(Vec::load_halves(halves));
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i index = _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(0xf));
    const __m512i exponent = _mm512_shuffle_epi8(entries, index), byte = _mm512_loadu_si512(bytes);
    const __m512i seven = _mm512_set1_epi8(0x7f);
    const __m512i low = _mm512_ternarylogic_epi32(byte, exponent, seven, 0xe4);
    const __m512i high = _mm512_ternarylogic_epi32(byte, exponent, seven, 0xd8);
    return {{{_mm512_unpacklo_epi8(low, high)}, {_mm512_unpackhi_epi8(low, high)}}};
  }
  static Pairs pairs_of(const std::uint8_t* p) {
    Pairs pairs;
    for (int h = 0; h < 2; ++h) {
      const __m512i second = _mm512_slli_epi32(_mm512_cvtepu16_epi32(Vec::load_halves(p + 64 * h + 32)), 16);
      pairs.part[h][0] = _mm512_or_si512(_mm512_cvtepu16_epi32(Vec::load_halves(p + 64 * h)), second);
    }
    return pairs;
  }
  static void store_weights(std::uint8_t* p, const Pairs& pairs) {
    for (int h = 0; h < 2; ++h) {
      const __m512i words = pairs.part[h][0];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 64 * h), _mm512_cvtepi32_epi16(words));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 64 * h + 32),
                          _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
    }
  }
  static void store_pairs(std::uint8_t* p, const Pairs& pairs) {
    _mm512_storeu_si512(p, pairs.part[0][0]);
    _mm512_storeu_si512(p + 64, pairs.part[1][0]);
  }
  static Vec::Part low_halves(Words w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
  static Vec::Part high_halves(Words w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static Vec::Part part_low_halves(const std::uint8_t* p) { return low_halves(_mm512_loadu_si512(p)); }
  static Vec::Part part_high_halves(const std::uint8_t* p) { return high_halves(_mm512_loadu_si512(p)); }
};

// Sums of two products fit into 16 bits: 2 * 127 * 127.
struct LevelOps {
  static constexpr int kDirectRows = 8;
  static constexpr int kDirectSums = 16;
  static constexpr int kTileRows = 4;
  static constexpr int kTileOutputs = 6;

  using Bytes = __m512i;
  using Sums = __m512i;
  using Table = __m512i;

  static Bytes load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(std::uint8_t* p, Bytes v) { _mm512_storeu_si512(p, v); }
  static Bytes splat(std::uint8_t value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Sums zero_sums() { return _mm512_setzero_si512(); }
  static Sums load_sums(const std::uint8_t* p) { return load(p); }
  static void store_negated(std::uint8_t* p, Sums v) { store(p, _mm512_sub_epi32(zero_sums(), v)); }
  static Vec to_floats(Sums v) { return {_mm512_cvtepi32_ps(v)}; }
  static Sums dot(Sums sums, Bytes weights, Bytes x) {
    const __m512i pairs = _mm512_maddubs_epi16(weights, x);
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }

  static Table table_of(const std::uint8_t (&table)[16]) { return _mm512_broadcast_i32x4(Vec::load_sixteen(table)); }
  static Bytes coarse(Table table, const std::uint8_t* words) {
    const __mmask64 low = load_word<std::uint64_t>(words), high = load_word<std::uint64_t>(words + 8),
                    sign = load_word<std::uint64_t>(words + 16);
    const auto add = [](__m512i v, __mmask64 where, char n) {
      return _mm512_mask_add_epi8(v, where, v, _mm512_set1_epi8(n));
    };
    return _mm512_shuffle_epi8(table, add(add(_mm512_maskz_set1_epi8(low, 1), high, 2), sign, 4));
  }
  static Bytes nibbles(Table table, const std::uint8_t* halves) {
    const __m512i both = _mm512_broadcast_i64x4(Vec::load_halves(halves));
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    return _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(0xf)));
  }
};

static_assert(VectorBackend<Vec>);
static_assert(GroupBackend<GroupOps, Vec>);
static_assert(LevelBackend<LevelOps, Vec>);

}  // namespace
}  // namespace penstock
