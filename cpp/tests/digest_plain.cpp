// What is compiled once for all: the encoders of packed and indexed weights, noise, angles.
#include "codec/index.h"
#include "numerics/gumbel.h"
#include "numerics/rope_table.h"
#include "packed_input.h"

namespace penstock {
namespace {

void encode(Digest& digest) {
  for (const std::int64_t cols : {1, 63, 64, 200, 1000, 4099}) {
    Random random(static_cast<std::uint32_t>(cols));
    PackedInput(23, cols, 8, random).add_bytes(digest);
  }
}

void index(Digest& digest) {
  for (const std::int64_t cols : {1, 64, 130, 4099}) {
    Random random(static_cast<std::uint32_t>(cols + 1));
    const std::vector<std::uint8_t> weights = random.weights(4 * cols);
    std::vector<std::int64_t> exceptions(4);
    count_exceptions({weights.data(), 4, cols, exceptions.data(), nullptr}, 0, 4);
    digest.add(exceptions);
  }
}

void gumbel_noise(Digest& digest) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < 10000; ++i) tokens.push_back(i * 31);
  std::vector<double> out(tokens.size());
  gumbel(0x123456789abcdef, 3, 77, tokens.data(), static_cast<std::int64_t>(tokens.size()), out.data());
  digest.add(out);
}

void angles(Digest& digest) {
  Random random(5);
  std::vector<float> inv_freq = random.values(64);
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < 60; ++i) positions.push_back(random.below(1 << 20));
  std::vector<float> cos(positions.size() * inv_freq.size()), sin(cos.size());
  const bool is_complete = rope_table(positions.data(), static_cast<std::int64_t>(positions.size()), inv_freq.data(),
                                      static_cast<std::int64_t>(inv_freq.size()), cos.data(), sin.data());
  digest.add(&is_complete, 1);
  digest.add(cos);
  digest.add(sin);
}

constexpr PlainCase kCases[] = {{"encode", encode}, {"index", index}, {"gumbel", gumbel_noise}, {"rope_table", angles}};

}  // namespace

std::span<const PlainCase> plain_cases() { return kCases; }

}  // namespace penstock
