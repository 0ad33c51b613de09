// Where one row of a packed matrix lies, and how long its parts are (docs/format.md).
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
  std::int64_t bytes = 0;  // of data; kSpareBytes more may be read

  std::uint64_t low(std::int64_t g) const { return load_word<std::uint64_t>(coarse + g * kGroupCoarseBytes); }
  std::uint64_t high(std::int64_t g) const { return load_word<std::uint64_t>(coarse + g * kGroupCoarseBytes + 8); }
  std::uint64_t sign(std::int64_t g) const { return load_word<std::uint64_t>(coarse + g * kGroupCoarseBytes + 16); }
  std::uint64_t class0(std::int64_t g) const { return ~(low(g) | high(g)); }
};

PackedRow find_row(const PackedMatrix& w, std::int64_t row) {
  const std::int64_t chunk = row / w.rows_per_chunk, index = row % w.rows_per_chunk;
  const std::int64_t first = chunk * w.rows_per_chunk;
  const std::int64_t rows = w.rows - first < w.rows_per_chunk ? w.rows - first : w.rows_per_chunk;
  const std::uint8_t* coarse = w.coarse + chunk * coarse_bytes(w.rows_per_chunk, w.cols);
  const std::uint8_t* fine = w.fine + w.fine_offsets[chunk];
  const std::int64_t fine_bytes = w.fine_offsets[chunk + 1] - w.fine_offsets[chunk];

  PackedRow r;
  r.unit = coarse[index];
  r.groups = groups_of(w.cols);
  r.coarse = coarse + unit_bytes(rows) + index * r.groups * kGroupCoarseBytes;
  if (fine_bytes < offset_bytes(rows) + kSpareBytes) return r;
  const std::uint32_t begin = load_word<std::uint32_t>(fine + 4 * index);
  const std::uint32_t end = load_word<std::uint32_t>(fine + 4 * index + 4);
  const bool end_is_raw = (end & kRawRow) != 0;
  r.raw = (begin & kRawRow) != 0;
  r.data = fine + (begin & ~kRawRow);
  r.bytes = static_cast<std::int64_t>(end & ~kRawRow) - (begin & ~kRawRow);
  const bool starts_well =
      index == 0 ? (begin & ~kRawRow) == offset_bytes(rows) : (begin & ~kRawRow) >= offset_bytes(rows);
  const bool ends_well = (end & ~kRawRow) <= fine_bytes - kSpareBytes && !(index == rows - 1 && end_is_raw);
  r.sound = starts_well && ends_well && r.bytes >= 0 && (!r.raw || r.bytes == 2 * w.cols);
  return r;
}

// A level's string of bits.
struct Level {
  const std::uint8_t* data;
  std::int64_t bits;

  std::int64_t bytes() const { return divide_up(bits, 8); }

  // Bits [begin, begin + 64); those past the end are zero. begin is a multiple of 8 below `bits`.
  std::uint64_t word(std::int64_t begin) const {
    const std::uint64_t word = load_word<std::uint64_t>(data + begin / 8);
    return bits - begin >= 64 ? word : word & ((std::uint64_t{1} << (bits - begin)) - 1);
  }
  std::int64_t ones() const {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < bits; i += 64) n += __builtin_popcountll(word(i));
    return n;
  }
  bool padded_with_zeros() const { return bits % 8 == 0 || data[bits / 8] >> bits % 8 == 0; }
};

// Where the parts of a row's data lie that is not raw.
struct RowParts {
  Level level[kLevels];
  const std::uint8_t* gaps;
  std::int64_t n_gaps;
  const std::uint8_t* values;
  const std::uint8_t* literals;
};

std::int64_t count_class0(const PackedRow& row, bool& too_many) {
  std::int64_t n = 0;
  for (std::int64_t g = 0; g < row.groups; ++g) {
    const int count = __builtin_popcountll(row.class0(g));
    too_many |= count > kMostClass0;
    n += count;
  }
  return n;
}

// Checks that the data are as long as they say; false if not.
bool find_parts(const PackedRow& row, RowParts& parts) {
  const std::uint8_t* const end = row.data + row.bytes;
  if (row.bytes < row.groups * kGroupMantissaBytes + 2) return false;
  const std::uint8_t* next = row.data + row.groups * kGroupMantissaBytes;
  bool too_many = false;
  std::int64_t bits = count_class0(row, too_many);
  if (too_many) return false;
  for (Level& level : parts.level) {
    level = {next, bits};
    if (level.bytes() > end - next || !level.padded_with_zeros()) return false;
    next += level.bytes();
    bits = level.ones();
  }
  if (end - next < 2) return false;
  parts.n_gaps = load_word<std::uint16_t>(next);
  parts.gaps = next + 2;
  if (parts.n_gaps > end - parts.gaps) return false;
  parts.values = parts.gaps + parts.n_gaps;
  std::int64_t patches = 0;
  for (std::int64_t i = 0; i < parts.n_gaps; ++i) patches += parts.gaps[i] != 255;
  if (divide_up(patches, 4) > end - parts.values) return false;
  parts.literals = parts.values + divide_up(patches, 4);
  std::int64_t literals = 0;
  for (std::int64_t i = 0; i < patches; ++i) literals += (parts.values[i / 4] >> i % 4 * 2 & 3) == 3;
  const bool ends_with_zeros = patches % 4 == 0 || parts.values[patches / 4] >> patches % 4 * 2 == 0;
  return ends_with_zeros && literals == end - parts.literals;
}

}  // namespace
}  // namespace penstock
