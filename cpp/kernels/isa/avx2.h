// AVX2, FMA and F16C: a Vec is two 256-bit registers (generic/backend.h).
#pragma once

#include <immintrin.h>

#include "kernels/generic/depth_planes.h"
#include "kernels/generic/table.h"

namespace penstock {
namespace {

struct Vec {
  using Part = __m256;
  static constexpr int kParts = 2;
  static constexpr int kTileRows = 3;
  static constexpr int kTileOutputs = 2;
  static constexpr int kRegisters = 16;
  static constexpr bool kWidensOnce = true;
  static constexpr bool kEmulatesFma = false;
  Part part[kParts];

  using Mask = Vec;  // all ones or all zeros, lane by lane

  static Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Vec load(const float* p, int count) {
    const Mask m = first(count);
    return {_mm256_maskload_ps(p, _mm256_castps_si256(m.part[0])),
            _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.part[1]))};
  }
  static Part load_part(const float* p) { return _mm256_loadu_ps(p); }
  static void store_part(float* p, Part v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, Vec v) {
    _mm256_storeu_ps(p, v.part[0]);
    _mm256_storeu_ps(p + 8, v.part[1]);
  }
  static void store(float* p, Vec v, int count) {
    const Mask m = first(count);
    _mm256_maskstore_ps(p, _mm256_castps_si256(m.part[0]), v.part[0]);
    _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.part[1]), v.part[1]);
  }

  static Vec load_f32(const std::uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static Vec load_f32(const std::uint8_t* p, int count) { return load(reinterpret_cast<const float*>(p), count); }
  static __m128i load_halves(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static Part part_f32(const std::uint8_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static Part part_bf16(const std::uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(p)), 16));
  }
  static Part part_f16(const std::uint8_t* p) { return _mm256_cvtph_ps(load_halves(p)); }
  static Vec load_bf16(const std::uint8_t* p) { return {part_bf16(p), part_bf16(p + 16)}; }
  static Vec load_bf16(const std::uint8_t* p, int count) {
    std::uint8_t copy[32] = {};
    __builtin_memcpy(copy, p, 2 * count);
    return load_bf16(copy);
  }
  static Vec load_f16(const std::uint8_t* p) { return {part_f16(p), part_f16(p + 16)}; }
  static Vec load_f16(const std::uint8_t* p, int count) {
    std::uint8_t copy[32] = {};
    __builtin_memcpy(copy, p, 2 * count);
    return load_f16(copy);
  }
  static void store_f32(std::uint8_t* p, Vec v, int count) { store(reinterpret_cast<float*>(p), v, count); }
  static __m256i round_bf16(Part v) {  // in the low halves of 32-bit lanes
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
  }
  static void store_bf16(std::uint8_t* p, Vec v) {
    const __m256i packed = _mm256_packus_epi32(round_bf16(v.part[0]), round_bf16(v.part[1]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  static void store_bf16(std::uint8_t* p, Vec v, int count) {
    std::uint8_t copy[32];
    store_bf16(copy, v);
    __builtin_memcpy(p, copy, 2 * count);
  }

  static Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.part[0], b.part[0]), _mm256_add_ps(a.part[1], b.part[1])}; }
  static Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.part[0], b.part[0]), _mm256_sub_ps(a.part[1], b.part[1])}; }
  static Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.part[0], b.part[0]), _mm256_mul_ps(a.part[1], b.part[1])}; }
  static Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.part[0], b.part[0]), _mm256_div_ps(a.part[1], b.part[1])}; }
  static Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.part[0]), _mm256_sqrt_ps(a.part[1])}; }
  static Vec fma(Vec a, Vec b, Vec c) {
    return {fma(a.part[0], b.part[0], c.part[0]), fma(a.part[1], b.part[1], c.part[1])};
  }
  // With the intrinsic, GCC 12 reuses the registers of a and b for sums and has to spill some.
  static Part accumulate(Part a, Part b, Part sum) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
  }
  static Part fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
  static Part pinned(Part p) {
    __asm__("" : "+v"(p));
    return p;
  }
  static Vec neg(Vec a) {
    const Part sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.part[0], sign), _mm256_xor_ps(a.part[1], sign)};
  }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.part[0], b.part[0]), _mm256_max_ps(a.part[1], b.part[1])}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.part[0], b.part[0]), _mm256_min_ps(a.part[1], b.part[1])}; }

  static float sum(Vec v) {
    const __m256 eight = _mm256_add_ps(v.part[0], v.part[1]);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // Each step adds the halves of two vectors' groups of lanes into one vector; 16, 8, 4, 2 lanes a group.
  static Part sums_of_eight(const Vec* v) {
    __m256 w[8];
    for (int i = 0; i < 8; ++i) {
      const Vec& from = v[i / 4 * 4 + i % 2 * 2 + i / 2 % 2];
      w[i] = _mm256_add_ps(from.part[0], from.part[1]);
    }
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm256_add_ps(_mm256_permute2f128_ps(w[i], w[i + 4], 0x20), _mm256_permute2f128_ps(w[i], w[i + 4], 0x31));
    }
    for (int i = 0; i < 2; ++i) {
      w[i] = _mm256_add_ps(_mm256_shuffle_ps(w[i], w[i + 2], 0x44), _mm256_shuffle_ps(w[i], w[i + 2], 0xee));
    }
    return _mm256_add_ps(_mm256_shuffle_ps(w[0], w[1], 0x88), _mm256_shuffle_ps(w[0], w[1], 0xdd));
  }
  static Vec sums(const Vec (&v)[16]) { return {sums_of_eight(v), sums_of_eight(v + 8)}; }
  static float reduce_max(Vec v) {
    const __m256 eight = _mm256_max_ps(v.part[0], v.part[1]);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static Vec round(Vec a) { return sub(add(a, broadcast(0x1.8p23f)), broadcast(0x1.8p23f)); }
  static Part pow2(Part a) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvttps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static Vec pow2(Vec a) { return {pow2(a.part[0]), pow2(a.part[1])}; }

  static Mask less(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.part[0], b.part[0], _CMP_LT_OQ), _mm256_cmp_ps(a.part[1], b.part[1], _CMP_LT_OQ)};
  }
  static Mask first(int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)),
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lane))};
  }
  static Vec select(Mask m, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.part[0], yes.part[0], m.part[0]), _mm256_blendv_ps(no.part[1], yes.part[1], m.part[1])};
  }
};

struct GroupOps {
  template <int O>
  using Depths = DepthPlanes<GroupOps, O>;
  using Words = __m256i;
  struct Pairs {
    Words part[2][Vec::kParts];
  };

  static __m256i load_bytes(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_bytes(std::uint8_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static std::uint64_t deposit(std::uint64_t bits, std::uint64_t mask) { return _pdep_u64(bits, mask); }

  // Of each byte, the number of bits that are set.
  static __m256i count_bits(__m256i v) {
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    return _mm256_add_epi8(_mm256_shuffle_epi8(counts, _mm256_and_si256(v, low)),
                           _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
  }
  static std::int64_t copy_and_count(std::uint8_t* dst, std::int64_t stride, const std::uint8_t* src,
                                     std::int64_t bytes, const std::uint8_t* readable_end) {
    if (stride > readable_end - src) {
      __builtin_memcpy(dst, src, static_cast<std::size_t>(bytes));
      src = dst;
    }
    const __m256i index =
        _mm256_setr_epi64x(0x0706050403020100, 0x0f0e0d0c0b0a0908, 0x1716151413121110, 0x1f1e1d1c1b1a1918);
    __m256i ones = _mm256_setzero_si256();
    for (std::int64_t i = 0; i < stride; i += 32) {
      const std::int64_t left = bytes - i;
      const char count = static_cast<char>(left < 0 ? 0 : left < 32 ? left : 32);
      const __m256i v = _mm256_and_si256(load_bytes(src + i), _mm256_cmpgt_epi8(_mm256_set1_epi8(count), index));
      store_bytes(dst + i, v);
      ones = _mm256_add_epi64(ones, _mm256_sad_epu8(count_bits(v), _mm256_setzero_si256()));
    }
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(ones), _mm256_extracti128_si256(ones, 1));
    return _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
  }

  // Byte p is -1 where bit 32 half + p is set, else 0. `bits` is in every 64 bits.
  static __m256i bytes_of(__m256i bits, int half) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const __m256i from = half == 0 ? spread : _mm256_add_epi8(spread, _mm256_set1_epi8(4));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, from), each), each);
  }
  static __m256i broadcast(std::uint64_t bits) { return _mm256_set1_epi64x(static_cast<long long>(bits)); }

  // Entry -i modulo 16 is that of number i.
  using Table = __m256i;
  static Table table_of(const std::uint8_t (&table)[16]) {
    std::uint8_t negated[16];
    for (int i = 0; i < 16; ++i) negated[-i & 15] = table[i];
    return _mm256_broadcastsi128_si256(Vec::load_halves(negated));
  }
  static void store_entries(std::uint8_t* out, Table table, std::uint64_t bit0, std::uint64_t bit1, std::uint64_t bit2,
                            std::uint64_t bit3) {
    const __m256i bits[4] = {broadcast(bit0), broadcast(bit1), broadcast(bit2), broadcast(bit3)};
    PENSTOCK_UNROLL
    for (int half = 0; half < 2; ++half) {
      __m256i sum = bytes_of(bits[3], half);
      PENSTOCK_UNROLL
      for (int i = 2; i >= 0; --i) sum = _mm256_add_epi8(_mm256_add_epi8(sum, sum), bytes_of(bits[i], half));
      store_bytes(out + 32 * half, _mm256_shuffle_epi8(table, _mm256_and_si256(sum, _mm256_set1_epi8(15))));
    }
  }
  static Pairs compose(const std::uint8_t* exponents, const std::uint8_t* mantissas, std::uint64_t sign) {
    const __m256i stored[2] = {load_bytes(mantissas), load_bytes(mantissas + 32)};
    const std::uint64_t tops = static_cast<std::uint32_t>(_mm256_movemask_epi8(stored[0])) |
                               static_cast<std::uint64_t>(_mm256_movemask_epi8(stored[1])) << 32;
    const long long last = static_cast<long long>(_pdep_u64(tops, 0x7f7f7f7f7f7f7f7f));
    const __m256i seven = _mm256_set1_epi8(0x7f);
    const __m256i mantissa[2] = {stored[0], _mm256_blend_epi32(stored[1], _mm256_set1_epi64x(last), 0xc0)};
    Pairs pairs;
    PENSTOCK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m256i exponent = load_bytes(exponents + 32 * i);
      const __m256i negative = bytes_of(broadcast(sign), i);
      const __m256i low = _mm256_or_si256(_mm256_and_si256(mantissa[i], seven), _mm256_andnot_si256(seven, exponent));
      const __m256i high = _mm256_or_si256(_mm256_and_si256(exponent, seven), _mm256_andnot_si256(seven, negative));
      pairs.part[0][i] = _mm256_unpacklo_epi8(low, high);
      pairs.part[1][i] = _mm256_unpackhi_epi8(low, high);
    }
    return pairs;
  }
  static Pairs indexed(const std::uint8_t* table, const std::uint8_t* halves, const std::uint8_t* bytes) {
    const __m256i entries = _mm256_broadcastsi128_si256(Vec::load_halves(table));
    const __m256i seven = _mm256_set1_epi8(0x7f), four = _mm256_set1_epi8(0xf), both = load_bytes(halves);
    const __m256i index[2] = {_mm256_and_si256(both, four), _mm256_and_si256(_mm256_srli_epi16(both, 4), four)};
    Pairs pairs;
    PENSTOCK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m256i exponent = _mm256_shuffle_epi8(entries, index[i]), byte = load_bytes(bytes + 32 * i);
      const __m256i low = _mm256_or_si256(_mm256_and_si256(byte, seven), _mm256_andnot_si256(seven, exponent));
      const __m256i high = _mm256_or_si256(_mm256_and_si256(exponent, seven), _mm256_andnot_si256(seven, byte));
      pairs.part[0][i] = _mm256_unpacklo_epi8(low, high);
      pairs.part[1][i] = _mm256_unpackhi_epi8(low, high);
    }
    return pairs;
  }
  static __m256i load_words(const std::uint8_t* p) { return _mm256_cvtepu16_epi32(Vec::load_halves(p)); }
  static Pairs pairs_of(const std::uint8_t* p) {
    Pairs pairs;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 2; ++i) {
        const std::uint8_t* first = p + 64 * h + 16 * i;
        pairs.part[h][i] = _mm256_or_si256(load_words(first), _mm256_slli_epi32(load_words(first + 32), 16));
      }
    }
    return pairs;
  }
  static void store_weights(std::uint8_t* p, const Pairs& pairs) {
    for (int h = 0; h < 2; ++h) {
      const __m256i a = pairs.part[h][0], b = pairs.part[h][1], low = _mm256_set1_epi32(0xffff);
      const __m256i first = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
      const __m256i second = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
      store_bytes(p + 64 * h, _mm256_permute4x64_epi64(first, 0xd8));
      store_bytes(p + 64 * h + 32, _mm256_permute4x64_epi64(second, 0xd8));
    }
  }
  static void store_pairs(std::uint8_t* p, const Pairs& pairs) {
    for (int i = 0; i < 4; ++i) store_bytes(p + 32 * i, pairs.part[i / 2][i % 2]);
  }
  static Vec::Part low_halves(Words w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
  static Vec::Part high_halves(Words w) {
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static Vec::Part part_low_halves(const std::uint8_t* p) { return low_halves(load_bytes(p)); }
  static Vec::Part part_high_halves(const std::uint8_t* p) { return high_halves(load_bytes(p)); }
};

// Sums of two products fit into 16 bits: 2 * 127 * 127.
struct LevelOps {
  static constexpr int kDirectRows = 4;
  static constexpr int kDirectSums = 4;
  static constexpr int kTileRows = 2;
  static constexpr int kTileOutputs = 2;

  struct Bytes {
    __m256i part[2];
  };
  using Sums = Bytes;
  using Table = __m256i;

  static Bytes load(const std::uint8_t* p) { return {{GroupOps::load_bytes(p), GroupOps::load_bytes(p + 32)}}; }
  static void store(std::uint8_t* p, Bytes v) {
    GroupOps::store_bytes(p, v.part[0]);
    GroupOps::store_bytes(p + 32, v.part[1]);
  }
  static Bytes splat(std::uint8_t value) {
    const __m256i v = _mm256_set1_epi8(static_cast<char>(value));
    return {{v, v}};
  }
  static Sums zero_sums() { return splat(0); }
  static Sums load_sums(const std::uint8_t* p) { return load(p); }
  static void store_negated(std::uint8_t* p, Sums v) {
    const __m256i zero = _mm256_setzero_si256();
    store(p, {{_mm256_sub_epi32(zero, v.part[0]), _mm256_sub_epi32(zero, v.part[1])}});
  }
  static Vec to_floats(Sums v) { return {{_mm256_cvtepi32_ps(v.part[0]), _mm256_cvtepi32_ps(v.part[1])}}; }
  static __m256i dot(__m256i sums, __m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(weights, x);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Sums dot(Sums sums, Bytes weights, Bytes x) {
    return {{dot(sums.part[0], weights.part[0], x.part[0]), dot(sums.part[1], weights.part[1], x.part[1])}};
  }

  static Table table_of(const std::uint8_t (&table)[16]) {
    return _mm256_broadcastsi128_si256(Vec::load_halves(table));
  }
  static __m256i bit(std::uint64_t bits, int half, char value) {
    return _mm256_and_si256(GroupOps::bytes_of(GroupOps::broadcast(bits), half), _mm256_set1_epi8(value));
  }
  static Bytes coarse(Table table, const std::uint8_t* words) {
    const auto low = load_word<std::uint64_t>(words), high = load_word<std::uint64_t>(words + 8),
               sign = load_word<std::uint64_t>(words + 16);
    Bytes v;
    PENSTOCK_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m256i number =
          _mm256_or_si256(_mm256_or_si256(bit(low, half, 1), bit(high, half, 2)), bit(sign, half, 4));
      v.part[half] = _mm256_shuffle_epi8(table, number);
    }
    return v;
  }
  static Bytes nibbles(Table table, const std::uint8_t* halves) {
    const __m256i both = GroupOps::load_bytes(halves), four = _mm256_set1_epi8(0xf);
    const __m256i upper = _mm256_srli_epi16(both, 4);
    return {{_mm256_shuffle_epi8(table, _mm256_and_si256(both, four)),
             _mm256_shuffle_epi8(table, _mm256_and_si256(upper, four))}};
  }
};

static_assert(VectorBackend<Vec>);
static_assert(GroupBackend<GroupOps, Vec>);
static_assert(LevelBackend<LevelOps, Vec>);

}  // namespace
}  // namespace penstock
