// The angles of rotary position embedding (arXiv 2104.09864), formed as `transformers` forms them: float32 position
// times float32 inverse frequency, rounded to float32.
#pragma once

#include <cstdint>

namespace penstock {

// cos, sin: [rows][half], each value that of `sin_cos` rounded once: correctly rounded but for about one value in 2^28.
// False if an angle is not finite or not below kSinCosLimit in magnitude; the tables are then incomplete.
bool rope_table(const std::int64_t* positions, std::int64_t rows, const float* inv_freq, std::int64_t half, float* cos,
                float* sin);

}  // namespace penstock
