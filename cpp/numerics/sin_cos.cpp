#include "numerics/sin_cos.h"

#include <cstdint>
#include <cstring>

namespace penstock {
namespace {

// pi/2 in parts of 27, 21 and 53 bits: products of the first two with a multiple of at most 26 bits are exact.
constexpr double kHalfPi1 = 0x1.921fb54p+0;
constexpr double kHalfPi2 = 0x1.10b46p-30;
constexpr double kHalfPi3 = 0x1.1a62633145c07p-54;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;

// Adding this leaves a double's integer part, rounded to nearest even, in its low bits.
constexpr double kRoundToInteger = 0x1.8p+52;

// (-1)^n / (2n + 3)! and (-1)^n / (2n + 4)!. The first term left out is below 2^-62 of the result.
constexpr double kSine[] = {
    -1.0 / 6.0,        1.0 / 120.0,        -1.0 / 5040.0,          1.0 / 362880.0,
    -1.0 / 39916800.0, 1.0 / 6227020800.0, -1.0 / 1307674368000.0, 1.0 / 355687428096000.0,
};
constexpr double kCosine[] = {
    1.0 / 24.0,        -1.0 / 720.0,         1.0 / 40320.0,          -1.0 / 3628800.0,
    1.0 / 479001600.0, -1.0 / 87178291200.0, 1.0 / 20922789888000.0, -1.0 / 6402373705728000.0,
};

struct Reduced {
  double high;
  double low;
  unsigned quadrant;
};

Reduced reduce(double x) {
  const double shifted = x * kTwoOverPi + kRoundToInteger;
  const double k = shifted - kRoundToInteger;
  std::uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const double r = (x - k * kHalfPi1) - k * kHalfPi2;  // exact
  const double tail = k * kHalfPi3;
  const double high = r - tail;
  const double part = r - high;  // Knuth's two-sum: high + low = r - tail exactly
  const double low = (r - (high + part)) + (part - tail);
  return {high, low, static_cast<unsigned>(bits & 3)};
}

double polynomial(const double (&coefficients)[8], double z) {
  double sum = coefficients[7];
  for (int i = 6; i >= 0; --i) sum = sum * z + coefficients[i];
  return sum;
}

}  // namespace

SinCos sin_cos(double x) {
  const Reduced r = reduce(x);
  const double z = r.high * r.high;
  const double sine = r.high + (r.high * z * polynomial(kSine, z) + r.low);
  const double half = 0.5 * z;
  const double base = 1.0 - half;
  const double lost = (1.0 - base) - half;
  const double cosine = base + (lost + (z * z * polynomial(kCosine, z) - r.high * r.low));
  switch (r.quadrant) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

}  // namespace penstock
