// The table for AVX-512 F, BW, DQ and VL.
#include "kernels/isa/avx512.h"

namespace penstock {

constinit const Kernels kAvx512Kernels = make_kernels<Vec, GroupOps, LevelOps>("avx512");

}  // namespace penstock
