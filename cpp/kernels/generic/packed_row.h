// Where one row of a packed matrix lies (docs/format.md).
#pragma once

#include "codec/layout.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

template <typename T>
T load_word(const std::uint8_t* p) {
  T word;
  __builtin_memcpy(&word, p, sizeof(T));
  return word;
}

// A row's coarse bits and its data in the fine chunk.
struct PackedRow {
  bool sound = false;  // the data lie within the chunk; nothing else of them has been looked at
  bool raw = false;
  std::uint8_t unit = 0;
  std::int64_t groups = 0;
  const std::uint8_t* coarse = nullptr;
  const std::uint8_t* data = nullptr;
  const std::uint8_t* end = nullptr;        // of the data
  const std::uint8_t* chunk_end = nullptr;  // kSpareBytes behind the last row's end, or more

  const std::uint8_t* group_coarse(std::int64_t g) const { return coarse + g * kGroupCoarseBytes; }
  const std::uint8_t* mantissas(std::int64_t g) const { return data + g * kGroupMantissaBytes; }
};

PackedRow find_row(const PackedMatrix& w, std::int64_t row) {
  const std::int64_t chunk = row / w.rows_per_chunk, index = row % w.rows_per_chunk;
  const std::int64_t first = chunk * w.rows_per_chunk;
  const std::int64_t rows = w.rows - first < w.rows_per_chunk ? w.rows - first : w.rows_per_chunk;
  const std::uint8_t* coarse = w.coarse + chunk * coarse_bytes(w.rows_per_chunk, w.cols);
  const std::uint8_t* fine = w.fine + w.fine_offsets[chunk];

  PackedRow r;
  r.unit = coarse[index];
  r.groups = groups_of(w.cols);
  r.coarse = coarse + unit_bytes(rows) + index * r.groups * kGroupCoarseBytes;
  r.chunk_end = w.fine + w.fine_offsets[chunk + 1];
  if (r.chunk_end - fine < offset_bytes(rows) + kSpareBytes) return r;
  const std::uint32_t begin_word = load_word<std::uint32_t>(fine + 4 * index);
  const std::uint32_t end_word = load_word<std::uint32_t>(fine + 4 * index + 4);
  const std::int64_t begin = begin_word & ~kRawRow, end = end_word & ~kRawRow;
  r.raw = (begin_word & kRawRow) != 0;
  const bool starts_well = index == 0 ? begin == offset_bytes(rows) : begin >= offset_bytes(rows);
  const bool ends_well = begin <= end && end <= r.chunk_end - fine - kSpareBytes;
  const bool ends_table_well = index < rows - 1 || (end_word & kRawRow) == 0;
  r.sound = starts_well && ends_well && ends_table_well && (!r.raw || end - begin == 2 * w.cols);
  if (!r.sound) return r;
  r.data = fine + begin;
  r.end = fine + end;
  return r;
}

}  // namespace
}  // namespace penstock
