// Writes what the encoder makes of matrices of many kinds to a folder, for the fuzzer to begin with: `seeds FOLDER`.
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "codec/encode.h"
#include "codec/layout.h"

namespace penstock {
namespace {

using Weights = std::vector<std::uint16_t>;

class Random {
 public:
  std::uint32_t operator()() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 32);
  }

 private:
  std::uint64_t state_ = 1;
};

// Exponents as normal weights have them; every `wild`-th weight is noise.
Weights matrix(Random& random, std::int64_t rows, std::int64_t cols, unsigned wild) {
  Weights weights;
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const std::uint32_t bits = random();
    const int exponent = 120 - __builtin_ctz((bits >> 8) | 1 << 15) + ((bits >> 24 & 31) == 0 ? 2 : 0);
    const bool is_noise = wild != 0 && random() % wild == 0;
    weights.push_back(static_cast<std::uint16_t>(is_noise ? bits : (bits >> 31) << 15 | exponent << 7 | (bits & 127)));
  }
  return weights;
}

void append(std::string& out, std::int64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> 8 * i));
}

// As packed_case.h has it.
std::string encoded(const Weights& weights, std::int64_t rows, std::int64_t cols, std::int64_t step) {
  std::string header, sizes, coarse, fine;
  append(header, rows - 1, 1);
  append(header, step - 1, 1);
  append(header, cols - 1, 2);
  for (std::int64_t first = 0; first < rows; first += step) {
    const std::int64_t n = rows - first < step ? rows - first : step;
    std::string c(static_cast<std::size_t>(coarse_bytes(n, cols)), '\0');
    std::string f(static_cast<std::size_t>(most_fine_bytes(n, cols)), '\0');
    const std::int64_t size =
        encode_chunk(reinterpret_cast<const std::uint8_t*>(weights.data() + first * cols), n, cols,
                     reinterpret_cast<std::uint8_t*>(c.data()), reinterpret_cast<std::uint8_t*>(f.data()));
    if (first + n == rows) c.resize(static_cast<std::size_t>(bare_coarse_bytes(n, cols)));
    append(sizes, size, 2);
    coarse += c;
    fine += f.substr(0, static_cast<std::size_t>(size));
  }
  return header + sizes + coarse + fine;
}

}  // namespace
}  // namespace penstock

int main(int, char** arguments) {
  penstock::Random random;
  int number = 0;
  for (const std::int64_t cols : {1, 60, 64, 65, 128, 200, 320, 700, 1024}) {
    for (const std::int64_t rows : {1, 3, 8}) {
      for (const unsigned wild : {0, 3, 50, 300}) {
        const auto weights = penstock::matrix(random, rows, cols, wild);
        std::ofstream file(arguments[1] + std::string("/") + std::to_string(number++), std::ios::binary);
        file << penstock::encoded(weights, rows, cols, rows == 8 ? 3 : rows);
      }
    }
  }
}
