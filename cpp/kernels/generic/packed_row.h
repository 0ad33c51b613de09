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
  const std::uint8_t* mantissas(std::int64_t g) const { return data + g * kGroupMantissaBytes; }
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
  const std::uint32_t begin_word = load_word<std::uint32_t>(fine + 4 * index);
  const std::uint32_t end_word = load_word<std::uint32_t>(fine + 4 * index + 4);
  const std::int64_t begin = begin_word & ~kRawRow, end = end_word & ~kRawRow;
  r.raw = (begin_word & kRawRow) != 0;
  r.data = fine + begin;
  r.bytes = end - begin;
  const bool starts_well = index == 0 ? begin == offset_bytes(rows) : begin >= offset_bytes(rows);
  const bool ends_well = begin <= end && end <= fine_bytes - kSpareBytes;
  const bool is_last = index == rows - 1;
  r.sound = starts_well && ends_well && !(is_last && (end_word & kRawRow) != 0);
  if (r.raw && r.bytes != 2 * w.cols) r.sound = false;
  return r;
}

// A level's string of bits.
struct Level {
  const std::uint8_t* data;
  std::int64_t bits;

  std::int64_t bytes() const { return divide_up(bits, 8); }

  // The first bits of those that begin at `byte`, and zeros past the end: kCount of them, 56 or 64.
  template <int kCount>
  std::uint64_t word(std::int64_t byte) const {
    const std::uint64_t word = load_word<std::uint64_t>(data + byte);
    const std::int64_t left = bits - 8 * byte;
    if (left < kCount) return word & ((std::uint64_t{1} << left) - 1);
    return kCount == 64 ? word : word & ((std::uint64_t{1} << 56) - 1);
  }
  std::int64_t ones() const {
    std::int64_t n = 0, i = 0;
    for (; i + 8 <= bits / 8; i += 8) n += __builtin_popcountll(load_word<std::uint64_t>(data + i));
    return 8 * i < bits ? n + __builtin_popcountll(word<64>(i)) : n;
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
  int most = 0;
  for (std::int64_t g = 0; g < row.groups; ++g) {
    const int count = __builtin_popcountll(row.class0(g));
    most = count > most ? count : most;
    n += count;
  }
  too_many = most > kMostClass0;
  return n;
}

// Where the patches lie that begin at `begin`; false if they do not end where the row does.
bool find_patches(const PackedRow& row, RowParts& parts, const std::uint8_t* begin) {
  const std::uint8_t* const end = row.data + row.bytes;
  if (end - begin < 2) return false;
  parts.n_gaps = load_word<std::uint16_t>(begin);
  parts.gaps = begin + 2;
  if (parts.n_gaps > end - parts.gaps) return false;
  parts.values = parts.gaps + parts.n_gaps;
  std::uint64_t patches = 0, i = 0;
  const auto count_below_255 = [](std::uint64_t bytes) {
    bytes &= bytes >> 4;
    bytes &= bytes >> 2;
    return 8 - __builtin_popcountll(bytes & bytes >> 1 & 0x0101010101010101);
  };
  const std::uint64_t n = static_cast<std::uint64_t>(parts.n_gaps);
  for (; i + 8 <= n; i += 8) patches += count_below_255(load_word<std::uint64_t>(parts.gaps + i));
  if (i < n) patches += count_below_255(load_word<std::uint64_t>(parts.gaps + i) | ~std::uint64_t{0} << (n - i) * 8);
  const std::int64_t value_bytes = (patches + 3) / 4;
  if (value_bytes > end - parts.values) return false;
  parts.literals = parts.values + value_bytes;
  return (patches & 3) == 0 || parts.values[patches / 4] >> (patches & 3) * 2 == 0;
}

// Checks that the data are as long as they say; false if not.
bool find_parts(const PackedRow& row, RowParts& parts) {
  const std::uint8_t* const end = row.data + row.bytes;
  if (row.bytes < row.groups * kGroupMantissaBytes + 2) return false;
  const std::uint8_t* next = row.mantissas(row.groups);
  bool too_many = false;
  std::int64_t bits = count_class0(row, too_many);
  if (too_many) return false;
  for (Level& level : parts.level) {
    level = {next, bits};
    if (level.bytes() > end - next || !level.padded_with_zeros()) return false;
    next += level.bytes();
    bits = level.ones();
  }
  return find_patches(row, parts, next);
}

}  // namespace
}  // namespace penstock
