// What the cases of digest.cpp have in common: inputs that are the same everywhere, and digests of outputs.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/kernels.h"
#include "numerics/philox.h"

namespace penstock {

// FNV-1a, 64 bits. All NaNs are one: which of them comes out is free (kernels/generic/backend.h).
class Digest {
 public:
  template <typename T>
  void add(const T* values, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        const float value = values[i];
        bytes(value == value ? std::bit_cast<std::uint32_t>(value) : 0x7fc00000u);
      } else {
        bytes(values[i]);
      }
    }
  }
  template <typename T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size());
  }
  std::uint64_t value() const { return value_; }

 private:
  template <typename T>
  void bytes(const T& item) {
    std::uint8_t raw[sizeof(T)];
    __builtin_memcpy(raw, &item, sizeof(T));
    for (const std::uint8_t byte : raw) value_ = (value_ ^ byte) * 0x100000001b3;
  }

  std::uint64_t value_ = 0xcbf29ce484222325;
};

// Numbers from Philox, the same for the same key.
class Random {
 public:
  explicit Random(std::uint32_t key) : key_(key) {}

  std::uint32_t bits() {
    if (used_ == 4) {
      block_ = philox4x32({count_++, 0, 0, 0}, {key_, 0});
      used_ = 0;
    }
    return block_[used_++];
  }
  std::int64_t below(std::int64_t n) { return bits() % n; }

  // A sign, 23 bits of mantissa, and an exponent the rarer the smaller it is: magnitudes below 2.
  float value() {
    const std::uint32_t r = bits(), deep = static_cast<std::uint32_t>(std::countr_zero(bits() | 1u << 30));
    return std::bit_cast<float>((r & 0x80000000) | (127 - deep) << 23 | (r & 0x7fffff));
  }
  // Likewise, but one in 5 is zero, denormal, huge, infinite or NaN, any float, or halfway between two BF16 values.
  float rough() {
    constexpr std::uint32_t kSpecial[8] = {0,          0x80000000, 1,          0x807fffff,
                                           0x7f800000, 0xff800000, 0x7fc00000, 0x7f7fffff};
    switch (below(16)) {
      case 0:
        return std::bit_cast<float>(kSpecial[below(8)]);
      case 1:
        return std::bit_cast<float>(bits());
      case 2:
        return std::bit_cast<float>((bits() & 0xffff0000) | 0x8000);
      default:
        return value();
    }
  }
  std::vector<float> values(std::int64_t n, bool rough_ones = false) {
    std::vector<float> result(static_cast<std::size_t>(n));
    for (float& item : result) item = rough_ones ? rough() : value();
    return result;
  }
  // BF16 weights, some of them far from the others; of `any` bits, or of values.
  std::vector<std::uint8_t> weights(std::int64_t n, bool any = false) {
    std::vector<std::uint8_t> result(static_cast<std::size_t>(2 * n));
    for (std::int64_t i = 0; i < n; ++i) {
      const bool is_outlier = any || below(150) == 0;
      const std::uint32_t half = (is_outlier ? bits() : std::bit_cast<std::uint32_t>(value())) >> 16;
      result[2 * i] = static_cast<std::uint8_t>(half);
      result[2 * i + 1] = static_cast<std::uint8_t>(half >> 8);
    }
    return result;
  }

 private:
  std::uint32_t key_, count_ = 0;
  std::array<std::uint32_t, 4> block_{};
  int used_ = 4;
};

// Memory as kernels want it, full of something.
class Aligned {
 public:
  explicit Aligned(std::int64_t bytes) : lines_(static_cast<std::size_t>(bytes + 63) / 64 + 1) {
    __builtin_memset(lines_.data(), 0xa5, lines_.size() * sizeof(Line));
  }
  std::uint8_t* data() { return reinterpret_cast<std::uint8_t*>(lines_.data()); }
  Scratch scratch() { return {reinterpret_cast<std::byte*>(lines_.data()), lines_.size() * sizeof(Line)}; }

 private:
  struct Line {
    alignas(64) std::uint8_t bytes[64];
  };
  std::vector<Line> lines_;
};

// Rows that lie apart.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t cols, Random& random, bool rough = false)
      : rows_(rows), cols_(cols), values_(random.values(rows * (cols + kApart), rough)) {}

  operator Rows<float>() { return {values_.data(), rows_, cols_, cols_ + kApart}; }
  operator Rows<const float>() const { return {values_.data(), rows_, cols_, cols_ + kApart}; }
  const std::vector<float>& values() const { return values_; }  // those between the rows, too: nobody may write there

 private:
  static constexpr std::int64_t kApart = 5;
  std::int64_t rows_, cols_;
  std::vector<float> values_;
};

// A kernel in three calls.
template <typename Args>
void run_in_parts(void (*kernel)(const Args&, std::int64_t, std::int64_t, Scratch), const Args& args,
                  std::int64_t units, Scratch scratch) {
  const std::int64_t first = units / 3, second = units - units / 4;
  kernel(args, 0, first, scratch);
  kernel(args, first, second, scratch);
  kernel(args, second, units, scratch);
}

struct Case {
  const char* kernel;
  void (*run)(const Kernels&, Digest&);
};

std::span<const Case> product_cases();
std::span<const Case> packed_cases();
std::span<const Case> draft_cases();
std::span<const Case> row_cases();
std::span<const Case> attention_cases();

// What has no table, and yet must be the same everywhere.
struct PlainCase {
  const char* name;
  void (*run)(Digest&);
};
std::span<const PlainCase> plain_cases();

}  // namespace penstock
