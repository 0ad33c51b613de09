#include "numerics/rope_table.h"

#include "numerics/sin_cos.h"

namespace penstock {

bool rope_table(const std::int64_t* positions, std::int64_t rows, const float* inv_freq, std::int64_t half, float* cos,
                float* sin) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float position = static_cast<float>(positions[row]);
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = position * inv_freq[i];
      if (!(angle < kSinCosLimit && angle > -kSinCosLimit)) return false;
      const SinCos value = sin_cos(angle);
      cos[row * half + i] = static_cast<float>(value.cos);
      sin[row * half + i] = static_cast<float>(value.sin);
    }
  }
  return true;
}

}  // namespace penstock
