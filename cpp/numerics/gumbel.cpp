#include "numerics/gumbel.h"

#include "numerics/log.h"
#include "numerics/philox.h"

namespace penstock {

void gumbel(std::uint64_t seed, std::uint32_t choice, std::uint32_t position, const std::int64_t* tokens,
            std::int64_t n, double* out) {
  const std::array<std::uint32_t, 2> key = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  for (std::int64_t i = 0; i < n; ++i) {
    const auto words = philox4x32({static_cast<std::uint32_t>(tokens[i]), position, choice, 0}, key);
    const std::uint64_t bits = std::uint64_t{words[0]} << 20 | words[1] >> 12;
    const double u = (static_cast<double>(bits) + 0.5) * 0x1p-52;
    out[i] = -natural_log(-natural_log(u));
  }
}

}  // namespace penstock
