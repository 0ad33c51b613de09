// Packed weights and levels by NEON (isa/neon.h), and its tables: one for every AArch64 CPU, one for those with SDOT.
#include "kernels/isa/neon.h"

#include "kernels/generic/depth_bytes.h"
#include "kernels/generic/table.h"

namespace penstock {
namespace {

// For each byte of a mask, where the bytes come from that are put where it has ones: the next one each time, and from
// beyond any table of 16 where it has zeros, be 8 added or not.
struct Places {
  std::uint8_t from[256][8];

  constexpr Places() : from() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int i = 0, next = 0; i < 8; ++i) {
        from[mask][i] = (mask >> i & 1) != 0 ? static_cast<std::uint8_t>(next++) : std::uint8_t{0x80};
      }
    }
  }
};
alignas(64) constexpr Places kPlaces;

struct GroupOps {
  template <int O>
  using Depths = DepthBytes<GroupOps, O>;
  using Words = uint32x4_t;
  struct Pairs {
    Words part[2][Vec::kParts];
  };

  static std::int64_t copy_and_count(std::uint8_t* dst, std::int64_t stride, const std::uint8_t* src,
                                     std::int64_t bytes, const std::uint8_t* readable_end) {
    if (stride > readable_end - src) {
      __builtin_memcpy(dst, src, static_cast<std::size_t>(bytes));
      src = dst;
    }
    const uint8x16_t index = vcombine_u8(vcreate_u8(0x0706050403020100), vcreate_u8(0x0f0e0d0c0b0a0908));
    uint64x2_t ones = vdupq_n_u64(0);
    for (std::int64_t i = 0; i < stride; i += 16) {
      const std::int64_t left = bytes - i;
      const std::uint8_t count = static_cast<std::uint8_t>(left < 0 ? 0 : left < 16 ? left : 16);
      const uint8x16_t v = vandq_u8(vld1q_u8(src + i), vcgtq_u8(vdupq_n_u8(count), index));
      vst1q_u8(dst + i, v);
      ones = vpadalq_u32(ones, vpaddlq_u16(vpaddlq_u8(vcntq_u8(v))));
    }
    return static_cast<std::int64_t>(vaddvq_u64(ones));
  }

  static uint8x16_t broadcast(std::uint64_t bits) { return vreinterpretq_u8_u64(vdupq_n_u64(bits)); }
  // Byte p is all ones where bit 16 quarter + p is set, else zero. `bits` is in both halves.
  static uint8x16_t bytes_of(uint8x16_t bits, int quarter) {
    const uint8x16_t spread = vcombine_u8(vdup_n_u8(static_cast<std::uint8_t>(2 * quarter)),
                                          vdup_n_u8(static_cast<std::uint8_t>(2 * quarter + 1)));
    return vtstq_u8(vqtbl1q_u8(bits, spread), broadcast(0x8040201008040201));
  }

  using Exponents = uint8x16_t;
  static Exponents splat(std::uint8_t exponent) { return vdupq_n_u8(exponent); }
  static void choose(std::uint8_t* out, std::uint64_t mask, Exponents yes, Exponents no) {
    PENSTOCK_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_u8(out + 16 * i, vbslq_u8(bytes_of(broadcast(mask), i), yes, no));
  }
  // Puts bytes from `next` on where the mask has ones, between those of others(quarter); returns how many.
  template <typename Others>
  [[gnu::always_inline]] static inline std::int64_t expand_between(std::uint8_t* out, std::uint64_t mask,
                                                                   const std::uint8_t* next, Others others) {
    const uint8x8_t counts = vcnt_u8(vcreate_u8(mask));
    const std::uint64_t before = vget_lane_u64(vreinterpret_u64_u8(counts), 0) * 0x0101010101010101;
    PENSTOCK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const std::uint8_t *first = kPlaces.from[mask >> 16 * i & 0xff],
                         *second = kPlaces.from[mask >> (16 * i + 8) & 0xff];
      const uint8x16_t after = vcombine_u8(vdup_n_u8(0xff), vdup_n_u8(static_cast<std::uint8_t>(2 * i)));
      const uint8x16_t ahead = vqtbl1q_u8(vcombine_u8(counts, counts), after);  // how many the first byte took
      const uint8x16_t from = vaddq_u8(vcombine_u8(vld1_u8(first), vld1_u8(second)), ahead);
      const std::uint8_t* bytes = next + (i == 0 ? 0 : before >> (16 * i - 8) & 0xff);
      vst1q_u8(out + 16 * i, vqtbx1q_u8(others(i), vld1q_u8(bytes), from));
    }
    return static_cast<std::int64_t>(before >> 56);
  }
  static std::int64_t expand(std::uint8_t* out, std::uint64_t mask, const std::uint8_t* next, Exponents no) {
    return expand_between(out, mask, next, [&](int) { return no; });
  }
  static std::int64_t expand_classes(std::uint8_t* out, std::uint64_t low, std::uint64_t high, const std::uint8_t* next,
                                     Exponents one, Exponents two, Exponents three) {
    const uint8x16_t lows = broadcast(low), highs = broadcast(high);
    return expand_between(out, ~(low | high), next, [&](int i) {
      return vbslq_u8(bytes_of(highs, i), vbslq_u8(bytes_of(lows, i), three, two), one);
    });
  }

  // Mantissa 56 + j is the highest bits of bytes 7 j to 7 j + 6.
  static uint8x8_t last_mantissas(const std::uint8_t* stored) {
    const uint8x16_t spread = vcombine_u8(vcreate_u8(0xff06050403020100), vcreate_u8(0xff0d0c0b0a090807));
    const uint8x16_t weight = broadcast(0x0040201008040201);
    const auto two = [&](int j) {
      const int8x16_t bytes = vreinterpretq_s8_u8(vqtbl1q_u8(vld1q_u8(stored + 7 * j), spread));
      return vandq_u8(vcltq_s8(bytes, vdupq_n_s8(0)), weight);
    };
    const uint8x16_t eight = vpaddq_u8(vpaddq_u8(two(0), two(2)), vpaddq_u8(two(4), two(6)));
    return vget_low_u8(vpaddq_u8(eight, eight));
  }
  // Low bytes end in `mantissa`, high ones begin with `sign`, and the exponent is between.
  static void set_words(Pairs& pairs, int i, uint8x16_t exponent, uint8x16_t mantissa, uint8x16_t sign) {
    const uint8x16_t seven = vdupq_n_u8(0x7f);
    const uint8x16_t low = vbslq_u8(seven, mantissa, exponent), high = vbslq_u8(seven, exponent, sign);
    pairs.part[0][i] = vreinterpretq_u32_u8(vzip1q_u8(low, high));
    pairs.part[1][i] = vreinterpretq_u32_u8(vzip2q_u8(low, high));
  }
  static Pairs compose(const std::uint8_t* exponents, const std::uint8_t* mantissas, std::uint64_t sign) {
    const uint8x16_t signs = broadcast(sign);
    Pairs pairs;
    PENSTOCK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t mantissa =
          i < 3 ? vld1q_u8(mantissas + 16 * i) : vcombine_u8(vld1_u8(mantissas + 48), last_mantissas(mantissas));
      set_words(pairs, i, vld1q_u8(exponents + 16 * i), mantissa, bytes_of(signs, i));
    }
    return pairs;
  }
  // Position p's entry by the low four bits of byte p, that of p + 32 by the high ones.
  static uint8x16_t entries(uint8x16_t table, const std::uint8_t* halves, int i) {
    const uint8x16_t both = vld1q_u8(halves + 16 * (i % 2));
    return vqtbl1q_u8(table, i < 2 ? vandq_u8(both, vdupq_n_u8(0xf)) : vshrq_n_u8(both, 4));
  }
  static Pairs indexed(const std::uint8_t* table, const std::uint8_t* halves, const std::uint8_t* bytes) {
    const uint8x16_t exponents = vld1q_u8(table);
    Pairs pairs;
    PENSTOCK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t byte = vld1q_u8(bytes + 16 * i);
      set_words(pairs, i, entries(exponents, halves, i), byte, byte);
    }
    return pairs;
  }
  static uint16x8_t load_weights(const std::uint8_t* p) { return vreinterpretq_u16_u8(vld1q_u8(p)); }
  static Pairs pairs_of(const std::uint8_t* p) {
    Pairs pairs;
    for (int i = 0; i < 4; ++i) {
      const std::uint8_t* first = p + 64 * (i / 2) + 16 * (i % 2);
      const uint16x8_t low = load_weights(first), high = load_weights(first + 32);
      pairs.part[i / 2][i % 2 * 2] = vreinterpretq_u32_u16(vzip1q_u16(low, high));
      pairs.part[i / 2][i % 2 * 2 + 1] = vreinterpretq_u32_u16(vzip2q_u16(low, high));
    }
    return pairs;
  }
  static void store_weights(std::uint8_t* p, const Pairs& pairs) {
    for (int i = 0; i < 4; ++i) {
      const uint16x8_t a = vreinterpretq_u16_u32(pairs.part[i / 2][i % 2 * 2]);
      const uint16x8_t b = vreinterpretq_u16_u32(pairs.part[i / 2][i % 2 * 2 + 1]);
      std::uint8_t* first = p + 64 * (i / 2) + 16 * (i % 2);
      vst1q_u8(first, vreinterpretq_u8_u16(vuzp1q_u16(a, b)));
      vst1q_u8(first + 32, vreinterpretq_u8_u16(vuzp2q_u16(a, b)));
    }
  }
  static void store_pairs(std::uint8_t* p, const Pairs& pairs) {
    for (int i = 0; i < 8; ++i) vst1q_u8(p + 16 * i, vreinterpretq_u8_u32(pairs.part[i / 4][i % 4]));
  }
  static Words load_words(const std::uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  static Vec::Part low_halves(Words w) { return vreinterpretq_f32_u32(vshlq_n_u32(w, 16)); }
  static Vec::Part high_halves(Words w) { return vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff0000))); }
  static Vec::Part part_low_halves(const std::uint8_t* p) { return low_halves(load_words(p)); }
  static Vec::Part part_high_halves(const std::uint8_t* p) { return high_halves(load_words(p)); }
};

// Without SDOT; sums of two products fit into 16 bits: 2 * 127 * 127.
struct LevelOps {
  static constexpr int kDirectRows = 4;
  static constexpr int kDirectSums = 2;
  static constexpr int kTileRows = 2;
  static constexpr int kTileOutputs = 2;

  struct Bytes {
    uint8x16_t part[4];
  };
  struct Sums {
    int32x4_t part[4];
  };
  using Table = uint8x16_t;

  template <class To, typename F>
  static To each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  static Bytes load(const std::uint8_t* p) {
    return each<Bytes>([&](int i) { return vld1q_u8(p + 16 * i); });
  }
  static void store(std::uint8_t* p, const Bytes& v) {
    for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, v.part[i]);
  }
  static Bytes splat(std::uint8_t value) {
    return each<Bytes>([&](int) { return vdupq_n_u8(value); });
  }
  static Sums zero_sums() {
    return each<Sums>([](int) { return vdupq_n_s32(0); });
  }
  static Sums load_sums(const std::uint8_t* p) {
    return each<Sums>([&](int i) { return vreinterpretq_s32_u8(vld1q_u8(p + 16 * i)); });
  }
  static void store_negated(std::uint8_t* p, const Sums& v) {
    for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, vreinterpretq_u8_s32(vnegq_s32(v.part[i])));
  }
  static Vec to_floats(const Sums& v) {
    return Vec::each([&](int i) { return vcvtq_f32_s32(v.part[i]); });
  }
  static int32x4_t dot(int32x4_t sums, uint8x16_t weights, uint8x16_t x) {
    const int8x16_t a = vreinterpretq_s8_u8(weights), b = vreinterpretq_s8_u8(x);
    return vpadalq_s16(sums, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
  }
  static Sums dot(const Sums& sums, const Bytes& weights, const Bytes& x) {
    return each<Sums>([&](int i) { return dot(sums.part[i], weights.part[i], x.part[i]); });
  }

  static Table table_of(const std::uint8_t (&table)[16]) { return vld1q_u8(table); }
  static Bytes coarse(Table table, const std::uint8_t* words) {
    const uint8x16_t low = GroupOps::broadcast(load_word<std::uint64_t>(words)),
                     high = GroupOps::broadcast(load_word<std::uint64_t>(words + 8)),
                     sign = GroupOps::broadcast(load_word<std::uint64_t>(words + 16));
    return each<Bytes>([&](int i) {
      const uint8x16_t two = vsliq_n_u8(GroupOps::bytes_of(low, i), GroupOps::bytes_of(high, i), 1);
      const uint8x16_t three = vsliq_n_u8(two, GroupOps::bytes_of(sign, i), 2);
      return vqtbl1q_u8(table, vandq_u8(three, vdupq_n_u8(7)));
    });
  }
  static Bytes nibbles(Table table, const std::uint8_t* halves) {
    return each<Bytes>([&](int i) { return GroupOps::entries(table, halves, i); });
  }
};

// FEAT_DotProd: no intrinsic, since the rest of this file must do without it.
struct DotprodOps : LevelOps {
  static Sums dot(Sums sums, const Bytes& weights, const Bytes& x) {
    PENSTOCK_UNROLL
    for (int i = 0; i < 4; ++i) {
      __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b"
              : "+w"(sums.part[i])
              : "w"(weights.part[i]), "w"(x.part[i]));
    }
    return sums;
  }
};

static_assert(VectorBackend<Vec>);
static_assert(GroupBackend<GroupOps, Vec>);
static_assert(LevelBackend<LevelOps, Vec>);
static_assert(LevelBackend<DotprodOps, Vec>);

}  // namespace

constinit const Kernels kNeonKernels = make_kernels<Vec, GroupOps, LevelOps>("neon");

constinit const DraftKernels kNeonDotprodDraftKernels = make_draft_kernels<Vec, DotprodOps>();

}  // namespace penstock
