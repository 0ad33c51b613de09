// A matrix of every kind of row, packed.
#pragma once

#include "codec/encode.h"
#include "codec/layout.h"
#include "digest.h"
#include "kernels/draft.h"

namespace penstock {

class PackedInput {
 public:
  // Of the rows, one in five is raw for its bits, the others are as trained; `damage` bytes of what is packed are then
  // any.
  PackedInput(std::int64_t rows, std::int64_t cols, std::int64_t rows_per_chunk, Random& random, int damage = 0)
      : rows_(rows),
        cols_(cols),
        rows_per_chunk_(rows_per_chunk),
        weights_(static_cast<std::size_t>(2 * rows * cols)),
        coarse_(divide_up(rows, rows_per_chunk) * coarse_bytes(rows_per_chunk, cols)),
        fine_(divide_up(rows, rows_per_chunk) * most_fine_bytes(rows_per_chunk, cols)),
        offsets_{0} {
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::vector<std::uint8_t> row = random.weights(cols, r % 5 == 3);
      __builtin_memcpy(weights_.data() + 2 * r * cols, row.data(), row.size());
    }
    for (std::int64_t first = 0; first < rows; first += rows_per_chunk) {
      const std::int64_t count = rows - first < rows_per_chunk ? rows - first : rows_per_chunk;
      std::uint8_t* coarse = coarse_.data() + first / rows_per_chunk * coarse_bytes(rows_per_chunk, cols);
      chunks_.push_back(coarse);
      offsets_.push_back(offsets_.back() + encode_chunk(weights_.data() + 2 * first * cols, count, cols, coarse,
                                                        fine_.data() + offsets_.back()));
      coarse_size_ = coarse - coarse_.data() + coarse_bytes(count, cols);
    }
    for (int i = 0; i < damage; ++i) {
      std::uint8_t* bytes = i % 4 == 0 ? coarse_.data() : fine_.data();
      bytes[random.below(i % 4 == 0 ? coarse_size_ : offsets_.back())] = static_cast<std::uint8_t>(random.bits());
    }
  }

  PackedMatrix matrix() { return {rows_, cols_, rows_per_chunk_, coarse_.data(), fine_.data(), offsets_.data()}; }
  CoarseMatrix coarse(const std::uint8_t* magnitudes, const float* scales) const {
    return {rows_, cols_, rows_per_chunk_, chunks_.data(), magnitudes, scales};
  }
  const std::vector<std::uint8_t>& weights() const { return weights_; }
  void add_bytes(Digest& digest) {
    digest.add(coarse_.data(), static_cast<std::size_t>(coarse_size_));
    digest.add(fine_.data(), static_cast<std::size_t>(offsets_.back()));
  }

 private:
  std::int64_t rows_, cols_, rows_per_chunk_;
  std::vector<std::uint8_t> weights_;
  Aligned coarse_, fine_;
  std::vector<std::int64_t> offsets_;
  std::vector<const std::uint8_t*> chunks_;
  std::int64_t coarse_size_ = 0;
};

}  // namespace penstock
