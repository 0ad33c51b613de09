// Drafting with AVX-VNNI beside AVX2 (Intel since Alder Lake, AMD since Zen 5).
#include "kernels/isa/avx2.h"

namespace penstock {
namespace {

struct VnniOps : LevelOps {
  static __m256i dot(__m256i sums, __m256i weights, __m256i x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(weights), "x"(x));
    return sums;
  }
  static Sums dot(Sums sums, Bytes weights, Bytes x) {
    return {{dot(sums.part[0], weights.part[0], x.part[0]), dot(sums.part[1], weights.part[1], x.part[1])}};
  }
};

static_assert(LevelBackend<VnniOps, Vec>);

}  // namespace

constinit const DraftKernels kAvx2VnniDraftKernels = make_draft_kernels<Vec, VnniOps>();

}  // namespace penstock
