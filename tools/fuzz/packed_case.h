// A packed matrix as one string of bytes, for the fuzzer.
//
//   byte 0         rows - 1, modulo 8
//   byte 1         rows of a chunk - 1, modulo the rows
//   bytes 2 and 3  columns - 1, modulo 1024
//   2 bytes        for each chunk, its fine bytes
//   then           the coarse chunks, the fine chunks; zeros past the end
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "codec/layout.h"
#include "kernels/kernels.h"

namespace penstock {

// Memory of exactly the size that is asked for, so that AddressSanitizer sees the first byte beyond.
using Exact = std::unique_ptr<std::uint8_t[]>;

class PackedCase {
 public:
  PackedCase(const std::uint8_t* data, std::size_t size) : next_(data), left_(size) {
    rows_ = take() % 8 + 1;
    rows_per_chunk_ = take() % rows_ + 1;
    cols_ = (take() | take() << 8) % 1024 + 1;
    const std::int64_t chunks = divide_up(rows_, rows_per_chunk_);
    offsets_.push_back(0);
    for (std::int64_t i = 0; i < chunks; ++i) offsets_.push_back(offsets_.back() + (take() | take() << 8));
    const std::int64_t last_rows = rows_ - (chunks - 1) * rows_per_chunk_;
    coarse_ = take_all((chunks - 1) * coarse_bytes(rows_per_chunk_, cols_) + bare_coarse_bytes(last_rows, cols_));
    fine_ = take_all(offsets_.back());
  }

  PackedMatrix matrix() const { return {rows_, cols_, rows_per_chunk_, coarse_.get(), fine_.get(), offsets_.data()}; }

 private:
  int take() {
    if (left_ == 0) return 0;
    --left_;
    return *next_++;
  }
  Exact take_all(std::int64_t size) {
    Exact bytes(new std::uint8_t[static_cast<std::size_t>(size)]);
    for (std::int64_t i = 0; i < size; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(take());
    return bytes;
  }

  const std::uint8_t* next_;
  std::size_t left_;
  std::int64_t rows_, rows_per_chunk_, cols_;
  std::vector<std::int64_t> offsets_;
  Exact coarse_, fine_;
};

}  // namespace penstock
