// Packed weights with VBMI2 and VPOPCNTDQ beside the rest of AVX-512, and drafting with VNNI (Intel since Ice Lake, AMD
// since Zen 4).
#include "kernels/isa/avx512.h"

namespace penstock {
namespace {

// The exponents of O rows' weights of class 0, a byte each, so that vpexpandb puts them to their places: from the
// deepest level up, those of the next level go where a level has bits set, and its own where not.
template <GroupBits G, int O>
class DepthBytes {
 public:
  DepthBytes(const PackedRow (&row)[O], const Levels<G, O>& levels, std::uint8_t* scratch)
      : size_(align_chunk(row[0].groups * kMostClass0) + kChunkAlignment) {
    std::uint8_t *in = scratch, *out = scratch + O * size_;
    expand_last(row, levels, in);
    for (int level = kLevels - 2; level >= 0; --level) {
      expand(level, row, levels, in, out);
      std::uint8_t* const done = out;
      out = in;
      in = done;
    }
    bytes_ = in;
  }

  // All exponents of row o.
  void exponents(const PackedRow& row, int o, std::uint8_t* out) const {
    const __m512i one = of_class(row, 1), two = of_class(row, 2), three = of_class(row, 3);
    const std::uint8_t *coarse = row.coarse, *next = bytes_ + o * size_;
    for (std::int64_t g = 0; g < row.groups; ++g, coarse += kGroupCoarseBytes, out += kGroupWeights) {
      std::uint64_t low = load_word<std::uint64_t>(coarse), high = load_word<std::uint64_t>(coarse + 8);
      const __mmask64 is_low = low, is_high = high;
      __asm__("" : "+r"(low), "+r"(high));  // loaded twice, which is cheaper than moving masks to other registers
      const __m512i upper = _mm512_mask_mov_epi8(one, is_high, _mm512_mask_mov_epi8(two, is_low, three));
      const __mmask64 is_class0 = _knot_mask64(_kor_mask64(is_low, is_high));
      _mm512_storeu_si512(out, _mm512_mask_expand_epi8(upper, is_class0, _mm512_loadu_si512(next)));
      next += 64 - __builtin_popcountll(low | high);
    }
  }

 private:
  static __m512i of_class(const PackedRow& row, int c) {
    return _mm512_set1_epi8(static_cast<char>(exponent_of_class(row.unit, c)));
  }
  static __m512i of_depth(const PackedRow& row, int depth) {
    return _mm512_set1_epi8(static_cast<char>(exponent_of_depth(row.unit, depth)));
  }

  void expand_last(const PackedRow (&row)[O], const Levels<G, O>& levels, std::uint8_t* out) const {
    for (int o = 0; o < O; ++o) {
      const __m512i here = of_depth(row[o], kLevels - 1), last = of_depth(row[o], kLevels);
      for (std::int64_t i = 0; i < levels.bits(kLevels - 1); i += 64) {
        const __mmask64 mask = load_word<std::uint64_t>(levels.of(kLevels - 1, o) + i / 8);
        _mm512_storeu_si512(out + o * size_ + i, _mm512_mask_mov_epi8(here, mask, last));
      }
    }
  }

  void expand(int level, const PackedRow (&row)[O], const Levels<G, O>& levels, const std::uint8_t* in,
              std::uint8_t* out) const {
    __m512i here[O];
    const std::uint8_t *next[O], *bits[O];
    for (int o = 0; o < O; ++o) {
      here[o] = of_depth(row[o], level);
      next[o] = in + o * size_;
      bits[o] = levels.of(level, o);
    }
    for (std::int64_t i = 0, n = levels.bits(level); i < n; i += 64) {
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        std::uint64_t mask = load_word<std::uint64_t>(bits[o] + (i >> 3));
        const __mmask64 is_deeper = mask;
        __asm__("" : "+r"(mask));
        _mm512_storeu_si512(out + o * size_ + i,
                            _mm512_mask_expand_epi8(here[o], is_deeper, _mm512_loadu_si512(next[o])));
        next[o] += __builtin_popcountll(mask);
      }
    }
  }

  std::int64_t size_;  // from one row's bytes to the next one's
  const std::uint8_t* bytes_;
};

struct Vbmi2Ops : GroupOps {
  template <int O>
  using Depths = DepthBytes<Vbmi2Ops, O>;

  static __m512i count_bits(__m512i v) { return _mm512_popcnt_epi64(v); }
  static std::int64_t copy_and_count(std::uint8_t* dst, std::int64_t stride, const std::uint8_t* src,
                                     std::int64_t bytes, const std::uint8_t* readable_end) {
    return GroupOps::copy_and_count<count_bits>(dst, stride, src, bytes, readable_end);
  }
};

struct VnniOps : LevelOps {
  // By GCC 12's intrinsic, tiles of sums would wander from register to register.
  static Sums dot(Sums sums, Bytes weights, Bytes x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(x));
    return sums;
  }
};

static_assert(GroupBackend<Vbmi2Ops, Vec>);
static_assert(LevelBackend<VnniOps, Vec>);

}  // namespace

constinit const DraftKernels kAvx512VnniDraftKernels = make_draft_kernels<Vec, VnniOps>();

constinit const PackedKernels kAvx512Vbmi2PackedKernels{
    .matmul_packed = matmul_packed<Vec, Vbmi2Ops>,
    .unpack = unpack<Vbmi2Ops>,
};

}  // namespace penstock
