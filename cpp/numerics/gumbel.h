// Gumbel noise for sampling, a pure function of (seed, choice, position, token).
#pragma once

#include <cstdint>

namespace penstock {

// out[i] = -log(-log(u)) with u = (b + 1/2) / 2^52, b the first 52 bits (word 0, then the upper 20 bits of word 1) of
// philox4x32 with key (seed's low, high half) and counter (low 32 bits of tokens[i], position, choice, 0).
// Neither u nor log u is ever 0: the noise is finite, between -3.61 and 36.74.
void gumbel(std::uint64_t seed, std::uint32_t choice, std::uint32_t position, const std::int64_t* tokens,
            std::int64_t n, double* out);

}  // namespace penstock
