#include "codec/encode_plan.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "codec/encode_group.h"

namespace penstock {
namespace {

using Histogram = std::uint32_t[256];

void count_exponents(const std::uint8_t* row, std::int64_t cols, Histogram& counts) {
  Histogram part[4] = {};  // neighbours are often equal: one counter would wait for itself
  std::int64_t i = 0;
  for (; i + 4 <= cols; i += 4) {
    std::uint64_t four;
    std::memcpy(&four, row + 2 * i, 8);
    for (int j = 0; j < 4; ++j) ++part[j][four >> (16 * j + 7) & 0xff];
  }
  for (; i < cols; ++i) ++part[0][exponent_at(row + 2 * i)];
  for (int e = 0; e < 256; ++e) counts[e] = part[0][e] + part[1][e] + part[2][e] + part[3][e];
}

// Gaps of the row's patches: one for each, and 255s where two are far apart.
std::int64_t count_gaps(const std::uint8_t* row, std::int64_t cols, int unit) {
  std::int64_t gaps = 0, next = 0;
  for (std::int64_t start = 0; start < cols; start += kGroupWeights) {
    Words weights;
    Bytes exponents;
    load_group(row + 2 * start, cols - start, unit, weights);
    for (std::uint64_t left = patched_exponents(weights, unit, exponents); left != 0; left &= left - 1) {
      const std::int64_t position = start + std::countr_zero(left);
      gaps += (position - next) / 255 + 1;
      next = position + 1;
    }
  }
  return gaps;
}

// Costs of one row with any unit.
class Costs {
 public:
  Costs(const std::uint8_t* row, std::int64_t cols) : row_(row), cols_(cols) {
    count_exponents(row, cols, counts_);
    for (int e = 0; e < 256; ++e) below_[e + 1] = below_[e] + counts_[e];
  }

  // A unit with which no more weights are patched than with any other.
  int fewest_patches() const {
    int best = 0;
    for (int unit = 1; unit < 256; ++unit) best = window(unit) > window(best) ? unit : best;
    return best;
  }

  // What no row with so many patches stays below.
  std::int64_t least_bytes(int unit) const {
    const std::int64_t patches = cols_ - window(unit);
    return groups_of(cols_) * kGroupMantissaBytes + 2 + patches + divide_up(patches, 4);
  }

  // All but the number of gaps, which depends on the patches' places: at least one each.
  RowPlan without_gaps(int unit) const {
    RowPlan plan{};
    plan.unit = unit;
    std::int64_t deeper = 0;
    for (int level = kLevels; level >= 1; --level) {
      if (level == kLevels) deeper += count(unit - 9);
      deeper += count(unit - level - 1);
      plan.level_bits[level - 1] = deeper;
    }
    plan.patches = cols_ - window(unit);
    plan.level_bits[0] += lower_patches(unit);
    plan.literals = plan.patches - count(unit + 2) - count(unit + 3) - count(unit - 10);
    return with_gaps(plan, plan.patches);
  }

  RowPlan with_gaps(RowPlan plan, std::int64_t gaps) const {
    plan.gaps = gaps;
    plan.bytes = groups_of(cols_) * kGroupMantissaBytes + 2 + gaps + divide_up(plan.patches, 4) + plan.literals;
    for (const std::int64_t bits : plan.level_bits) plan.bytes += divide_up(bits, 8);
    return plan;
  }

  RowPlan exact(const RowPlan& plan) const {
    return plan.patches == 0 ? plan : with_gaps(plan, count_gaps(row_, cols_, plan.unit));
  }

 private:
  std::int64_t count(int exponent) const { return counts_[exponent & 0xff]; }

  // Weights of the exponents [begin, end), modulo 256, which are fewer than 256.
  std::int64_t between(int begin, int end) const {
    begin &= 0xff;
    end &= 0xff;
    return begin <= end ? below_[end] - below_[begin] : below_[256] - below_[begin] + below_[end];
  }
  std::int64_t window(int unit) const { return between(unit - 9, unit + 2); }

  // Patched weights that are not above the unit: all those below it, but the ones in the window.
  std::int64_t lower_patches(int unit) const {
    std::int64_t inside = 0;
    for (int e = unit - 9; e <= unit + 1; ++e) {
      if ((e & 0xff) <= unit) inside += count(e);
    }
    return below_[unit + 1] - inside;
  }

  const std::uint8_t* row_;
  std::int64_t cols_;
  Histogram counts_;
  std::int64_t below_[257] = {};
};

}  // namespace

RowPlan plan_row(const std::uint8_t* row, std::int64_t cols) {
  const Costs costs(row, cols);
  // What looks cheapest goes first, so that the exact costs of few others have to be found.
  RowPlan best = costs.without_gaps(costs.fewest_patches());
  for (int unit = 255; unit >= 0; --unit) {
    if (costs.least_bytes(unit) >= best.bytes) continue;
    const RowPlan plan = costs.without_gaps(unit);
    if (plan.bytes < best.bytes) best = plan;
  }
  best = costs.exact(best);
  for (int unit = 255; unit >= 0; --unit) {
    if (unit == best.unit || costs.least_bytes(unit) > best.bytes) continue;
    RowPlan plan = costs.without_gaps(unit);
    const auto is_better = [&] {
      return plan.bytes < best.bytes || (plan.bytes == best.bytes && plan.unit > best.unit);
    };
    if (!is_better()) continue;
    plan = costs.exact(plan);
    if (is_better()) best = plan;
  }
  return best;
}

}  // namespace penstock
