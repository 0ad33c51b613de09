#include "numerics/log.h"

#include <cstdint>
#include <cstring>

namespace penstock {
namespace {

// log 2 in two parts; the first has 42 bits, so that its product with an exponent is exact.
constexpr double kLog2High = 0x1.62e42fefa38p-1;
constexpr double kLog2Low = 0x1.ef35793c7673p-45;

constexpr std::uint64_t kMantissa = (std::uint64_t{1} << 52) - 1;
constexpr std::uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;

// 2 / (2n + 3): the series of 2 atanh(s) after its first term. The first term left out is below 2^-60 of log m.
constexpr double kAtanh[] = {2.0 / 3.0,  2.0 / 5.0,  2.0 / 7.0,  2.0 / 9.0,  2.0 / 11.0,
                             2.0 / 13.0, 2.0 / 15.0, 2.0 / 17.0, 2.0 / 19.0, 2.0 / 21.0};

}  // namespace

double natural_log(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Measured from sqrt(1/2), the exponent field counts the powers of two and the rest places m.
  const std::uint64_t offset = bits - kSqrtHalf;
  const double exponent = static_cast<double>(static_cast<std::int64_t>(offset) >> 52);
  const std::uint64_t mantissa = (offset & kMantissa) + kSqrtHalf;
  double m;
  std::memcpy(&m, &mantissa, sizeof m);

  const double f = m - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  double series = kAtanh[9];
  for (int i = 8; i >= 0; --i) series = series * z + kAtanh[i];
  // 2 s = f - s f, where f is exact.
  const double correction = s * (f - z * series) - exponent * kLog2Low;
  return exponent * kLog2High + (f - correction);
}

}  // namespace penstock
