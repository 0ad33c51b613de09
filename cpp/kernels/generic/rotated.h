// Exponents of packed weights are kept rotated right by one bit: a BF16 weight's low byte begins with the exponent's
// lowest bit, and its high byte ends with the other seven.
#pragma once

#include <cstdint>

namespace penstock {
namespace {

constexpr std::uint8_t rotated(int exponent) {
  return static_cast<std::uint8_t>((exponent >> 1 & 0x7f) | exponent << 7);
}

// The exponent of a class, 1 to 3, and that of class 0 at a depth, 0 to 7: so many bits are set for it in the levels.
constexpr std::uint8_t exponent_of_class(int unit, int c) { return rotated(unit - 2 + c); }
constexpr std::uint8_t exponent_of_depth(int unit, int depth) { return rotated(unit - 2 - depth); }

}  // namespace
}  // namespace penstock
