#include "codec/index.h"

#include <algorithm>
#include <cstring>

#include "codec/encode_group.h"

namespace penstock {
namespace {

constexpr int kTable = 16;

// A row's table: neighbouring exponents from `lowest` on, and, where a row has zeros, exponent 0 as the last entry.
struct Exponents {
  int lowest = 0;
  bool has_zeros = false;

  int at(int entry) const { return has_zeros && entry == kTable - 1 ? 0 : lowest + entry; }
};

// Those that most of a row's weights have. Some trained models are full of zeros, far below all other weights.
Exponents commonest_exponents(const std::uint8_t* row, std::int64_t cols) {
  std::uint32_t counts[4][256] = {};
  for (std::int64_t i = 0; i < cols; ++i) {
    std::uint16_t w;
    std::memcpy(&w, row + 2 * i, 2);
    ++counts[i % 4][w >> 7 & 0xff];
  }
  const auto count = [&](int e) { return std::uint64_t{counts[0][e]} + counts[1][e] + counts[2][e] + counts[3][e]; };
  std::uint64_t inside = 0, most = 0;
  Exponents best;
  const auto take = [&](std::uint64_t weights, int lowest, bool has_zeros) {
    if (weights > most) most = weights, best = {lowest, has_zeros};
  };
  for (int e = 0; e < 256; ++e) {
    inside += count(e);
    if (e >= kTable) inside -= count(e - kTable);
    if (e < kTable - 1) continue;
    const int lowest = e - kTable + 1;
    take(inside, lowest, false);
    if (lowest > 0) take(inside - count(e) + count(0), lowest, true);
  }
  return best;
}

// A group's indices; false if an exponent is not in the table.
bool indices_of(const Words& weights, Exponents table, Bytes& indices) {
  const std::uint8_t first = static_cast<std::uint8_t>(table.lowest);
  std::uint8_t any = 0;
  for (int p = 0; p < kGroupWeights; ++p) indices[p] = static_cast<std::uint8_t>((weights[p] >> 7) - first);
  if (table.has_zeros) {
    constexpr std::uint8_t kLast = kTable - 1, kNone = 255;
    for (int p = 0; p < kGroupWeights; ++p) {
      const bool is_zero = static_cast<std::uint8_t>(weights[p] >> 7) == 0;
      indices[p] = is_zero ? kLast : indices[p] == kLast ? kNone : indices[p];
    }
  }
  for (int p = 0; p < kGroupWeights; ++p) any |= indices[p];
  return any < kTable;
}

// Calls use(group, words, indices, is_exception) for all groups of a row.
template <typename Use>
void for_each_group(const std::uint8_t* row, std::int64_t cols, Exponents table, Use use) {
  for (std::int64_t g = 0; g < groups_of(cols); ++g) {
    Words words;
    Bytes indices;
    load_group(row + g * kExceptionBytes, cols - g * kGroupWeights, table.lowest + 1, words);
    use(g, words, indices, !indices_of(words, table, indices));
  }
}

void index_row(const std::uint8_t* row, std::int64_t cols, std::uint8_t* out, std::int64_t first_exception,
               std::uint8_t* exceptions) {
  const Exponents table = commonest_exponents(row, cols);
  std::memset(out, 0, static_cast<std::size_t>(indexed_header_bytes(cols)));
  for (int i = 0; i < kTable; ++i) {
    const int e = table.at(i);
    out[i] = static_cast<std::uint8_t>((e >> 1 & 0x7f) | e << 7);
  }
  const std::uint32_t first = static_cast<std::uint32_t>(first_exception);
  std::memcpy(out + kTable, &first, 4);
  std::uint8_t* const halves = out + indexed_header_bytes(cols);
  std::uint8_t* const bytes = halves + index_bytes(cols);
  std::uint8_t* exception = exceptions + first_exception * kExceptionBytes;
  for_each_group(row, cols, table, [&](std::int64_t g, const Words& words, const Bytes& indices, bool is_exception) {
    for (int p = 0; p < kGroupIndexBytes; ++p) {
      halves[g * kGroupIndexBytes + p] = static_cast<std::uint8_t>((indices[p] & 0xf) | indices[p + 32] << 4);
    }
    for (int p = 0; p < kGroupWeights; ++p) {
      bytes[g * kGroupWeights + p] = static_cast<std::uint8_t>((words[p] & 0x7f) | (words[p] >> 8 & 0x80));
    }
    if (!is_exception) return;
    out[kIndexFlags + g / 8] |= static_cast<std::uint8_t>(1 << g % 8);
    const std::int64_t count = std::min(kGroupWeights, cols - g * kGroupWeights);
    std::memset(exception, 0, kExceptionBytes);
    std::memcpy(exception, row + g * kExceptionBytes, static_cast<std::size_t>(2 * count));
    exception += kExceptionBytes;
  });
}

}  // namespace

void count_exceptions(const IndexArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const std::uint8_t* row = args.weights + r * args.cols * 2;
    std::int64_t count = 0;
    for_each_group(row, args.cols, commonest_exponents(row, args.cols),
                   [&](std::int64_t, const Words&, const Bytes&, bool is_exception) { count += is_exception; });
    args.exceptions[r] = count;
  }
}

void index_rows(const IndexArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t row_bytes = indexed_row_bytes(args.cols);
  for (std::int64_t r = begin; r < end; ++r) {
    index_row(args.weights + r * args.cols * 2, args.cols, args.out + r * row_bytes, args.exceptions[r],
              args.out + args.rows * row_bytes);
  }
}

}  // namespace penstock
