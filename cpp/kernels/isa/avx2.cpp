// The table for AVX2, FMA and F16C.
#include "kernels/isa/avx2.h"

namespace penstock {

constinit const Kernels kAvx2Kernels = make_kernels<Vec, GroupOps, LevelOps>("avx2");

}  // namespace penstock
