// The encoder of packed weights: one thread, no memory of its own, the same bytes everywhere.
#pragma once

#include <cstdint>

namespace penstock {

// Encodes a chunk of rows x cols BF16 weights, row-major at any address. Fills coarse_bytes(rows, cols) bytes of
// `coarse` and the first n of most_fine_bytes(rows, cols) at `fine`; returns n, a multiple of kChunkAlignment.
// 1 <= cols <= kMostColumns.
std::int64_t encode_chunk(const std::uint8_t* weights, std::int64_t rows, std::int64_t cols, std::uint8_t* coarse,
                          std::uint8_t* fine);

}  // namespace penstock
