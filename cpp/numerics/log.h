// Natural logarithm in float64 by a fixed sequence of IEEE operations, so that every machine gets the same bits.
#pragma once

namespace penstock {

// x must be positive, normal and finite. Error below one unit in the last place (largest seen: 0.95).
//
// Method: x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s) with s = (m - 1) / (m + 1), by its Taylor series
// through s^21.
double natural_log(double x);

}  // namespace penstock
