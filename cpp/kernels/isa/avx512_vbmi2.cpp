// Packed weights with VBMI2 and VPOPCNTDQ beside the rest of AVX-512, and drafting with VNNI (Intel since Ice Lake, AMD
// since Zen 4).
#include "kernels/generic/depth_bytes.h"
#include "kernels/isa/avx512.h"

namespace penstock {
namespace {

struct Vbmi2Ops : GroupOps {
  template <int O>
  using Depths = DepthBytes<Vbmi2Ops, O>;
  using Exponents = __m512i;

  static __m512i count_bits(__m512i v) { return _mm512_popcnt_epi64(v); }
  static std::int64_t copy_and_count(std::uint8_t* dst, std::int64_t stride, const std::uint8_t* src,
                                     std::int64_t bytes, const std::uint8_t* readable_end) {
    return GroupOps::copy_and_count<count_bits>(dst, stride, src, bytes, readable_end);
  }

  static Exponents splat(std::uint8_t exponent) { return _mm512_set1_epi8(static_cast<char>(exponent)); }
  static void choose(std::uint8_t* out, std::uint64_t mask, Exponents yes, Exponents no) {
    _mm512_storeu_si512(out, _mm512_mask_mov_epi8(no, mask, yes));
  }
  static std::int64_t expand(std::uint8_t* out, std::uint64_t mask, const std::uint8_t* next, Exponents no) {
    const __mmask64 places = mask;
    __asm__("" : "+r"(mask));  // loaded twice, which is cheaper than moving masks to other registers
    _mm512_storeu_si512(out, _mm512_mask_expand_epi8(no, places, _mm512_loadu_si512(next)));
    return __builtin_popcountll(mask);
  }
  static std::int64_t expand_classes(std::uint8_t* out, std::uint64_t low, std::uint64_t high, const std::uint8_t* next,
                                     Exponents one, Exponents two, Exponents three) {
    const __mmask64 is_low = low, is_high = high;
    __asm__("" : "+r"(low), "+r"(high));  // likewise
    const __m512i upper = _mm512_mask_mov_epi8(one, is_high, _mm512_mask_mov_epi8(two, is_low, three));
    const __mmask64 is_class0 = _knot_mask64(_kor_mask64(is_low, is_high));
    _mm512_storeu_si512(out, _mm512_mask_expand_epi8(upper, is_class0, _mm512_loadu_si512(next)));
    return 64 - __builtin_popcountll(low | high);
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
