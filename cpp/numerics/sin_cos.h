// Sine and cosine in float64 by a fixed sequence of IEEE operations, so that every machine gets the same bits.
//
// Method: Cody-Waite reduction by pi/2 in three parts (Cody and Waite, Software Manual for the Elementary Functions,
// 1980), then the Taylor polynomials of degree 17 (sine) and 18 (cosine) on [-pi/4, pi/4].
#pragma once

namespace penstock {

struct SinCos {
  double sin;
  double cos;
};

// |x| must be below this for `sin_cos`: the multiple of pi/2 then has at most 26 bits.
constexpr double kSinCosLimit = 67108864.0;

// Error below one unit in the last place of a double for float32 arguments below the limit (largest seen: 0.88).
SinCos sin_cos(double x);

}  // namespace penstock
