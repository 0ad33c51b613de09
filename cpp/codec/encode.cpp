#include "codec/encode.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "codec/encode_group.h"
#include "codec/encode_plan.h"
#include "codec/layout.h"

namespace penstock {
namespace {

static_assert(std::endian::native == std::endian::little);

std::uint64_t load64(const std::uint8_t* p) {
  std::uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}
void store64(std::uint8_t* p, std::uint64_t word) { std::memcpy(p, &word, 8); }
void store32(std::uint8_t* p, std::uint32_t word) { std::memcpy(p, &word, 4); }

// Writes a string of bits whose length is known, word by word; nothing past its last byte.
class BitWriter {
 public:
  void start(std::uint8_t* begin, std::int64_t bits) {
    next_ = begin;
    end_ = begin + divide_up(bits, 8);
    word_ = 0;
    used_ = 0;
  }
  // The lowest `count` bits, 0 to 64; the others are zero.
  void append(std::uint64_t bits, int count) {
    word_ |= bits << used_;
    const int used = used_ + count;
    if (used >= 64) {
      store64(next_, word_);
      next_ += 8;
      word_ = used_ == 0 ? 0 : bits >> (64 - used_);
    }
    used_ = used & 63;
  }
  void finish() const { std::memcpy(next_, &word_, static_cast<std::size_t>(end_ - next_)); }

 private:
  std::uint8_t* next_;
  std::uint8_t* end_;
  std::uint64_t word_;
  int used_;
};

// A group's weights in the order of their positions, and what is stored of them.
struct Group {
  std::uint64_t low, high, sign;
  std::uint64_t deeper[kLevels + 1];  // class 0, and those of it whose exponent is lower by at least 1, 2, ... 7
  std::uint64_t patched;
  Bytes exponent, mantissa;

  Group(const std::uint8_t* weights, std::int64_t count, int unit) {
    Words w;
    load_group(weights, count, unit, w);
    patched = patched_exponents(w, unit, exponent);
    Bytes is_low, is_high, depth, flags;
    const std::uint8_t s = static_cast<std::uint8_t>(unit), least = static_cast<std::uint8_t>(unit - 9);
    for (int p = 0; p < kGroupWeights; ++p) mantissa[p] = static_cast<std::uint8_t>(w[p] & 0x7f);
    for (int p = 0; p < kGroupWeights; ++p) flags[p] = static_cast<std::uint8_t>(w[p] >> 8 & 0x80);
    sign = top_bits(flags);
    for (int p = 0; p < kGroupWeights; ++p) {
      const std::uint8_t over = static_cast<std::uint8_t>(exponent[p] - least);  // 0 to 10, of what is not patched
      const std::uint8_t upper = over > 10 && exponent[p] > s ? 0x80 : 0;
      is_low[p] = static_cast<std::uint8_t>((over == 8 || over == 10 ? 0x80 : 0) | upper);
      is_high[p] = static_cast<std::uint8_t>((over == 9 || over == 10 ? 0x80 : 0) | upper);
      depth[p] = static_cast<std::uint8_t>(over < 8 ? 7 - over : 0);
    }
    low = top_bits(is_low);
    high = top_bits(is_high);
    deeper[0] = ~(low | high);
    for (int level = 1; level <= kLevels; ++level) {
      deeper[level] = 0;
      if (deeper[level - 1] == 0) continue;
      const std::uint8_t at_least = static_cast<std::uint8_t>(level);
      for (int p = 0; p < kGroupWeights; ++p) flags[p] = depth[p] >= at_least ? 0x80 : 0;
      deeper[level] = top_bits(flags);
    }
  }
};

// The bits of `bits` where `mask` has ones, moved together.
std::uint64_t extract_bits(std::uint64_t bits, std::uint64_t mask) {
  std::uint64_t result = 0;
  for (int i = 0; mask != 0; ++i, mask &= mask - 1) result |= (bits >> std::countr_zero(mask) & 1) << i;
  return result;
}

// The eighth bit of byte 7 j + i is bit i of the mantissa of position 56 + j.
void store_mantissas(const Bytes& mantissa, std::uint8_t* out) {
  Bytes bytes;
  std::memcpy(bytes, mantissa, sizeof(bytes));
  for (int j = 0; j < 8; ++j) {
    const std::uint64_t each = mantissa[56 + j] * 0x0001010101010101u & 0x0040201008040201u;
    const std::uint64_t tops = (each + 0x007f7f7f7f7f7f7fu) & 0x0080808080808080u;
    store64(bytes + 7 * j, load64(bytes + 7 * j) | tops);
  }
  std::memcpy(out, bytes, kGroupMantissaBytes);
}

int patch_value(int exponent, int unit) {
  switch ((exponent - unit) & 0xff) {
    case 2:
      return 0;
    case 3:
      return 1;
    case 256 - 10:
      return 2;
    default:
      return 3;
  }
}

// n, gaps, values, bytes.
class PatchWriter {
 public:
  void start(const RowPlan& plan, std::uint8_t* out) {
    unit_ = plan.unit;
    gaps_ = out + 2;
    values_ = gaps_ + plan.gaps;
    bytes_ = values_ + divide_up(plan.patches, 4);
    const std::uint16_t n = static_cast<std::uint16_t>(plan.gaps);
    std::memcpy(out, &n, 2);
    std::memset(values_, 0, static_cast<std::size_t>(bytes_ - values_));
  }

  void append(std::int64_t position, int exponent) {
    std::int64_t gap = position - next_;
    for (; gap >= 255; gap -= 255) *gaps_++ = 255;
    *gaps_++ = static_cast<std::uint8_t>(gap);
    next_ = position + 1;
    const int value = patch_value(exponent, unit_);
    values_[patches_ / 4] |= static_cast<std::uint8_t>(value << (patches_ % 4 * 2));
    ++patches_;
    if (value == 3) *bytes_++ = static_cast<std::uint8_t>(exponent);
  }

 private:
  int unit_ = 0;
  std::uint8_t* gaps_ = nullptr;
  std::uint8_t* values_ = nullptr;
  std::uint8_t* bytes_ = nullptr;
  std::int64_t next_ = 0;
  std::int64_t patches_ = 0;
};

void append_patches(const Group& group, std::int64_t start, PatchWriter& patches) {
  for (std::uint64_t left = group.patched; left != 0; left &= left - 1) {
    const int p = std::countr_zero(left);
    patches.append(start + p, group.exponent[p]);
  }
}

// One row, at the end of a fine chunk. Returns its data's bytes; sets `raw`.
std::int64_t encode_row(const std::uint8_t* row, std::int64_t cols, const RowPlan& plan, std::uint8_t* coarse,
                        std::uint8_t* fine, bool& raw) {
  raw = does_not_pay(plan, cols);
  BitWriter levels[kLevels];
  std::uint8_t* mantissas = fine;
  std::uint8_t* end = fine + groups_of(cols) * kGroupMantissaBytes;
  if (!raw) {
    for (int i = 0; i < kLevels; ++i) {
      levels[i].start(end, plan.level_bits[i]);
      end += divide_up(plan.level_bits[i], 8);
    }
  }
  PatchWriter patches;
  if (!raw) patches.start(plan, end);
  for (std::int64_t start = 0; start < cols; start += kGroupWeights, coarse += kGroupCoarseBytes) {
    const Group group(row + 2 * start, cols - start, plan.unit);
    store64(coarse, group.low);
    store64(coarse + 8, group.high);
    store64(coarse + 16, group.sign);
    raw = raw || std::popcount(group.deeper[0]) > kMostClass0;
    if (raw) continue;
    store_mantissas(group.mantissa, mantissas);
    mantissas += kGroupMantissaBytes;
    for (int i = 0; i < kLevels && group.deeper[i] != 0; ++i) {
      levels[i].append(extract_bits(group.deeper[i + 1], group.deeper[i]), std::popcount(group.deeper[i]));
    }
    append_patches(group, start, patches);
  }
  if (raw) {
    std::memcpy(fine, row, static_cast<std::size_t>(2 * cols));
    return 2 * cols;
  }
  for (const BitWriter& level : levels) level.finish();
  return plan.bytes;
}

}  // namespace

std::int64_t encode_chunk(const std::uint8_t* weights, std::int64_t rows, std::int64_t cols, std::uint8_t* coarse,
                          std::uint8_t* fine) {
  const std::int64_t row_coarse_bytes = groups_of(cols) * kGroupCoarseBytes;
  std::uint8_t* row_coarse = coarse + unit_bytes(rows);
  std::memset(coarse + rows, 0, static_cast<std::size_t>(unit_bytes(rows) - rows));
  std::int64_t offset = offset_bytes(rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::uint8_t* row = weights + r * cols * 2;
    const RowPlan plan = plan_row(row, cols);
    bool raw = false;
    coarse[r] = static_cast<std::uint8_t>(plan.unit);
    const std::int64_t bytes = encode_row(row, cols, plan, row_coarse, fine + offset, raw);
    store32(fine + 4 * r, static_cast<std::uint32_t>(offset) | (raw ? kRawRow : 0));
    offset += bytes;
    row_coarse += row_coarse_bytes;
  }
  store32(fine + 4 * rows, static_cast<std::uint32_t>(offset));
  const std::int64_t used = bare_coarse_bytes(rows, cols);
  std::memset(coarse + used, 0, static_cast<std::size_t>(coarse_bytes(rows, cols) - used));
  const std::int64_t total = align_chunk(offset + kSpareBytes);
  std::memset(fine + offset, 0, static_cast<std::size_t>(total - offset));
  return total;
}

}  // namespace penstock
