// Plain C++: what every operation of generic/backend.h computes, and the fallback for any CPU.
#include <bit>

#include "kernels/generic/depth_planes.h"
#include "kernels/generic/table.h"

namespace penstock {
namespace {

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kHardwareFma = true;
#else
constexpr bool kHardwareFma = false;
#endif

// Where FMA is emulated: the product of two floats is exact in double; the sum is rounded to odd, so that rounding it
// once more, to float, gives the correctly rounded result (Boldo and Melquiond, 2008).
float fused_multiply_add(float a, float b, float c) {
  if constexpr (kHardwareFma) return __builtin_fmaf(a, b, c);
  const double product = static_cast<double>(a) * b;
  const double addend = c;
  const double sum = product + addend;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);  // exact (TwoSum); NaN if sum is not finite
  std::uint64_t bits = std::bit_cast<std::uint64_t>(sum);
  if ((error > 0 || error < 0) && (bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : -1;
  return static_cast<float>(std::bit_cast<double>(bits));
}

float bf16_to_float(std::uint16_t h) { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }

float f16_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  const std::uint32_t magnitude = h & 0x7fff;
  if (magnitude < 0x400) {  // zero or denormal: an integer multiple of 2^-24
    const float value = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
  }
  const std::uint32_t bias = magnitude < 0x7c00 ? 112u << 23 : 224u << 23;  // infinity and NaN keep a full exponent
  return std::bit_cast<float>(((magnitude << 13) + bias) | sign);
}

std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return 0x7fc0;
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Vec {
  struct Part {
    float lane[16];
  };
  static constexpr int kParts = 1;
  static constexpr int kTileRows = 2;
  static constexpr int kTileOutputs = 2;
  static constexpr int kRegisters = 32;
  static constexpr bool kWidensOnce = false;
  static constexpr bool kEmulatesFma = !kHardwareFma;
  Part part[kParts];

  struct Mask {
    bool lane[16];
  };

  template <typename F>
  static Vec each(F f) {
    Vec v;
    for (int j = 0; j < 16; ++j) v.part[0].lane[j] = f(j);
    return v;
  }
  float operator[](int j) const { return part[0].lane[j]; }

  static Vec zero() { return broadcast(0.0f); }
  static Vec broadcast(float x) {
    return each([&](int) { return x; });
  }

  static Vec load(const float* p) {
    return each([&](int j) { return p[j]; });
  }
  static Vec load(const float* p, int count) {
    return each([&](int j) { return j < count ? p[j] : 0.0f; });
  }
  static Part load_part(const float* p) { return load(p).part[0]; }
  static void store_part(float* p, const Part& v) { __builtin_memcpy(p, &v, sizeof(v)); }
  static void store(float* p, const Vec& v) { store(p, v, 16); }
  static void store(float* p, const Vec& v, int count) {
    for (int j = 0; j < count; ++j) p[j] = v[j];
  }

  template <typename T>
  static T item(const std::uint8_t* p, int j) {
    T value;
    __builtin_memcpy(&value, p + j * sizeof(T), sizeof(T));
    return value;
  }
  static Vec load_f32(const std::uint8_t* p) { return load_f32(p, 16); }
  static Vec load_f32(const std::uint8_t* p, int count) {
    return each([&](int j) { return j < count ? item<float>(p, j) : 0.0f; });
  }
  static Vec load_bf16(const std::uint8_t* p) { return load_bf16(p, 16); }
  static Vec load_bf16(const std::uint8_t* p, int count) {
    return each([&](int j) { return j < count ? bf16_to_float(item<std::uint16_t>(p, j)) : 0.0f; });
  }
  static Vec load_f16(const std::uint8_t* p) { return load_f16(p, 16); }
  static Vec load_f16(const std::uint8_t* p, int count) {
    return each([&](int j) { return j < count ? f16_to_float(item<std::uint16_t>(p, j)) : 0.0f; });
  }
  static Part part_f32(const std::uint8_t* p) { return load_f32(p).part[0]; }
  static Part part_bf16(const std::uint8_t* p) { return load_bf16(p).part[0]; }
  static Part part_f16(const std::uint8_t* p) { return load_f16(p).part[0]; }
  static void store_f32(std::uint8_t* p, const Vec& v, int count) { __builtin_memcpy(p, &v, 4 * count); }
  static void store_bf16(std::uint8_t* p, const Vec& v, int count) {
    for (int j = 0; j < count; ++j) {
      const std::uint16_t h = float_to_bf16(v[j]);
      __builtin_memcpy(p + 2 * j, &h, 2);
    }
  }

  static Vec add(const Vec& a, const Vec& b) {
    return each([&](int j) { return a[j] + b[j]; });
  }
  static Vec sub(const Vec& a, const Vec& b) {
    return each([&](int j) { return a[j] - b[j]; });
  }
  static Vec mul(const Vec& a, const Vec& b) {
    return each([&](int j) { return a[j] * b[j]; });
  }
  static Vec div(const Vec& a, const Vec& b) {
    return each([&](int j) { return a[j] / b[j]; });
  }
  static Vec sqrt(const Vec& a) {
    return each([&](int j) { return __builtin_sqrtf(a[j]); });
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int j) { return fused_multiply_add(a[j], b[j], c[j]); });
  }
  static Part accumulate(const Part& a, const Part& b, const Part& sum) { return fma(a, b, sum); }
  static Part fma(const Part& a, const Part& b, const Part& c) {
    Part p;
    for (int j = 0; j < 16; ++j) p.lane[j] = fused_multiply_add(a.lane[j], b.lane[j], c.lane[j]);
    return p;
  }
  static Part pinned(const Part& p) { return p; }
  static Vec neg(const Vec& a) {
    return each([&](int j) { return -a[j]; });
  }
  static Vec max(const Vec& a, const Vec& b) {
    return each([&](int j) { return a[j] > b[j] ? a[j] : b[j]; });
  }
  static Vec min(const Vec& a, const Vec& b) {
    return each([&](int j) { return a[j] < b[j] ? a[j] : b[j]; });
  }

  static float sum(Vec v) {
    for (int width = 8; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) v.part[0].lane[j] = v[j] + v[j + width];
    }
    return v[0];
  }
  static Vec sums(const Vec (&v)[16]) {
    return each([&](int j) { return sum(v[j]); });
  }
  static float reduce_max(Vec v) {
    for (int width = 8; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) v.part[0].lane[j] = v[j] > v[j + width] ? v[j] : v[j + width];
    }
    return v[0];
  }

  static Vec round(const Vec& a) { return sub(add(a, broadcast(0x1.8p23f)), broadcast(0x1.8p23f)); }
  static Vec pow2(const Vec& a) {
    return each([&](int j) {
      return std::bit_cast<float>((static_cast<std::uint32_t>(static_cast<std::int32_t>(a[j])) + 127) << 23);
    });
  }

  static Mask less(const Vec& a, const Vec& b) {
    Mask m;
    for (int j = 0; j < 16; ++j) m.lane[j] = a[j] < b[j];
    return m;
  }
  static Mask first(int count) {
    Mask m;
    for (int j = 0; j < 16; ++j) m.lane[j] = j < count;
    return m;
  }
  static Vec select(const Mask& m, const Vec& yes, const Vec& no) {
    return each([&](int j) { return m.lane[j] ? yes[j] : no[j]; });
  }
};

struct GroupOps {
  template <int O>
  using Depths = DepthPlanes<GroupOps, O>;

  struct Words {
    std::uint32_t lane[16];
  };
  struct Pairs {
    Words part[2][Vec::kParts];
  };

  static std::uint64_t deposit(std::uint64_t bits, std::uint64_t mask) {
    std::uint64_t result = 0;
    for (; mask != 0; mask &= mask - 1, bits >>= 1) result |= (mask & -mask) & -(bits & 1);
    return result;
  }
  static std::int64_t copy_and_count(std::uint8_t* dst, std::int64_t stride, const std::uint8_t* src,
                                     std::int64_t bytes, const std::uint8_t*) {
    __builtin_memcpy(dst, src, static_cast<std::size_t>(bytes));
    __builtin_memset(dst + bytes, 0, static_cast<std::size_t>(stride - bytes));
    std::int64_t ones = 0;
    for (std::int64_t i = 0; i < stride; i += 8) ones += __builtin_popcountll(load_word<std::uint64_t>(dst + i));
    return ones;
  }

  struct Table {
    std::uint8_t at[16];
  };
  static Table table_of(const std::uint8_t (&table)[16]) { return Vec::item<Table>(table, 0); }
  static void store_entries(std::uint8_t* out, const Table& table, std::uint64_t bit0, std::uint64_t bit1,
                            std::uint64_t bit2, std::uint64_t bit3) {
    for (int p = 0; p < 64; ++p) {
      out[p] = table.at[(bit0 >> p & 1) | (bit1 >> p & 1) << 1 | (bit2 >> p & 1) << 2 | (bit3 >> p & 1) << 3];
    }
  }
  static Pairs compose(const std::uint8_t* exponents, const std::uint8_t* mantissas, std::uint64_t sign) {
    Pairs pairs;
    for (int p = 0; p < 64; p += 2) {
      std::uint32_t word = 0;
      for (int b = 0; b < 2; ++b) {
        const std::uint32_t low = (mantissa(mantissas, p + b)) | (exponents[p + b] & 0x80u);
        const std::uint32_t high = (exponents[p + b] & 0x7fu) | static_cast<std::uint32_t>(sign >> (p + b) & 1) << 7;
        word |= (low | high << 8) << 16 * b;
      }
      pairs.part[p >> 3 & 1][0].lane[p / 16 * 4 + p % 8 / 2] = word;
    }
    return pairs;
  }
  static std::uint32_t mantissa(const std::uint8_t* stored, int position) {
    if (position < 56) return stored[position] & 0x7f;
    std::uint32_t bits = 0;
    for (int i = 0; i < 7; ++i) bits |= static_cast<std::uint32_t>(stored[7 * (position - 56) + i] >> 7) << i;
    return bits;
  }
  static Pairs indexed(const std::uint8_t* table, const std::uint8_t* halves, const std::uint8_t* bytes) {
    Pairs pairs;
    for (int p = 0; p < 64; p += 2) {
      std::uint32_t word = 0;
      for (int b = 0; b < 2; ++b) {
        const std::uint32_t exponent = table[halves[(p + b) % 32] >> (p < 32 ? 0 : 4) & 0xf], byte = bytes[p + b];
        word |= ((byte & 0x7f) | (exponent & 0x80) | ((exponent & 0x7f) | (byte & 0x80)) << 8) << 16 * b;
      }
      pairs.part[p >> 3 & 1][0].lane[p / 16 * 4 + p % 8 / 2] = word;
    }
    return pairs;
  }
  static Pairs pairs_of(const std::uint8_t* p) {
    Pairs pairs;
    for (int j = 0; j < 32; ++j) {
      const int first = j / 16 * 32 + j % 16;
      pairs.part[j / 16][0].lane[j % 16] = Vec::item<std::uint16_t>(p, first) | Vec::item<std::uint16_t>(p, first + 16)
                                                                                    << 16;
    }
    return pairs;
  }
  static void store_weights(std::uint8_t* p, const Pairs& pairs) {
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t word = pairs.part[i / 32][0].lane[i % 16];
      const std::uint16_t h = static_cast<std::uint16_t>(i % 32 < 16 ? word : word >> 16);
      __builtin_memcpy(p + 2 * i, &h, 2);
    }
  }
  static void store_pairs(std::uint8_t* p, const Pairs& pairs) { __builtin_memcpy(p, &pairs, sizeof(pairs)); }
  static Vec::Part low_halves(const Words& w) {
    Vec::Part part;
    for (int j = 0; j < 16; ++j) part.lane[j] = std::bit_cast<float>(w.lane[j] << 16);
    return part;
  }
  static Vec::Part high_halves(const Words& w) {
    Vec::Part part;
    for (int j = 0; j < 16; ++j) part.lane[j] = std::bit_cast<float>(w.lane[j] & 0xffff0000);
    return part;
  }
  static Vec::Part part_low_halves(const std::uint8_t* p) { return low_halves(Vec::item<Words>(p, 0)); }
  static Vec::Part part_high_halves(const std::uint8_t* p) { return high_halves(Vec::item<Words>(p, 0)); }
};

struct LevelOps {
  static constexpr int kDirectRows = 2;
  static constexpr int kDirectSums = 2;
  static constexpr int kTileRows = 2;
  static constexpr int kTileOutputs = 2;

  struct Bytes {
    std::uint8_t at[64];
  };
  struct Sums {
    std::int32_t lane[16];
  };
  struct Table {
    std::uint8_t at[16];
  };

  static Bytes load(const std::uint8_t* p) { return Vec::item<Bytes>(p, 0); }
  static void store(std::uint8_t* p, const Bytes& v) { __builtin_memcpy(p, &v, sizeof(v)); }
  static Bytes splat(std::uint8_t value) {
    Bytes v;
    for (std::uint8_t& byte : v.at) byte = value;
    return v;
  }
  static Sums zero_sums() { return {}; }
  static Sums load_sums(const std::uint8_t* p) { return Vec::item<Sums>(p, 0); }
  static void store_negated(std::uint8_t* p, Sums v) {
    for (std::int32_t& sum : v.lane) sum = -sum;
    __builtin_memcpy(p, &v, sizeof(v));
  }
  static Vec to_floats(const Sums& v) {
    return Vec::each([&](int j) { return static_cast<float>(v.lane[j]); });
  }
  static Sums dot(Sums sums, const Bytes& weights, const Bytes& x) {
    for (int i = 0; i < 64; ++i) sums.lane[i / 4] += weights.at[i] * static_cast<std::int8_t>(x.at[i]);
    return sums;
  }

  static Table table_of(const std::uint8_t (&table)[16]) { return Vec::item<Table>(table, 0); }
  static Bytes coarse(const Table& table, const std::uint8_t* words) {
    const auto low = Vec::item<std::uint64_t>(words, 0), high = Vec::item<std::uint64_t>(words, 1),
               sign = Vec::item<std::uint64_t>(words, 2);
    Bytes v;
    for (int p = 0; p < 64; ++p) v.at[p] = table.at[(low >> p & 1) | (high >> p & 1) << 1 | (sign >> p & 1) << 2];
    return v;
  }
  static Bytes nibbles(const Table& table, const std::uint8_t* halves) {
    Bytes v;
    for (int p = 0; p < 64; ++p) v.at[p] = table.at[halves[p % 32] >> (p < 32 ? 0 : 4) & 0xf];
    return v;
  }
};

static_assert(VectorBackend<Vec>);
static_assert(GroupBackend<GroupOps, Vec>);
static_assert(LevelBackend<LevelOps, Vec>);

}  // namespace

constinit const Kernels kScalarKernels = make_kernels<Vec, GroupOps, LevelOps>("scalar");

}  // namespace penstock
