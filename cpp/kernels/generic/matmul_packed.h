// The matrix product with packed weights: runs of rows are decoded into scratch, then multiplied with all rows of x.
#pragma once

#include "kernels/generic/matmul.h"
#include "kernels/generic/unpack.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

template <class V>
void matmul_packed(const MatmulPackedArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  const std::int64_t row_bytes = 2 * a.w.cols;
  const std::int64_t decoder = align_chunk(unpack_scratch(a.w.cols));
  const std::int64_t room =
      (static_cast<std::int64_t>(scratch.bytes) - decoder - matmul_scratch(V::kTileOutputs)) / row_bytes;
  const std::int64_t wanted = kDecodedBytes / row_bytes;
  std::int64_t most = room < wanted ? room : wanted;
  most = most < V::kTileOutputs ? 1 : most / V::kTileOutputs * V::kTileOutputs;
  std::uint8_t* weights = reinterpret_cast<std::uint8_t*>(scratch.data + decoder);
  for (std::int64_t i = begin; i < end; i += most) {
    const std::int64_t n = end - i < most ? end - i : most;
    unpack<V>({a.w, i, weights, a.malformed}, 0, n, {scratch.data, static_cast<std::size_t>(decoder)});
    const std::size_t used = static_cast<std::size_t>(decoder + align_chunk(n * row_bytes));
    for (std::int64_t row = 0; row < a.x.rows; row += kMatmulRows) {
      MatmulArgs part{a.x, weights, Dtype::kBF16, a.bias ? a.bias + i : nullptr, a.accumulate, a.out};
      part.x.rows = a.x.rows - row < kMatmulRows ? a.x.rows - row : kMatmulRows;
      part.x.data += row * a.x.stride;
      part.out.data += row * a.out.stride + i;
      matmul<V>(part, 0, n, {scratch.data + used, scratch.bytes - used});
    }
  }
}

}  // namespace
}  // namespace penstock
