#include "codec/encode_plan.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "codec/encode_group.h"

namespace penstock {
namespace {

// Of each exponent: how many weights have it (lower half), and the sum of their mantissas (upper half).
using Histogram = std::uint64_t[256];

void count_exponents(const std::uint8_t* row, std::int64_t cols, Histogram& counts) {
  Histogram part[4] = {};  // neighbours are often equal: one counter would wait for itself
  const auto one = [](std::uint64_t weight) { return (weight & 0x7f) << 32 | 1; };
  std::int64_t i = 0;
  for (; i + 4 <= cols; i += 4) {
    std::uint64_t four;
    std::memcpy(&four, row + 2 * i, 8);
    for (int j = 0; j < 4; ++j) part[j][four >> (16 * j + 7) & 0xff] += one(four >> 16 * j);
  }
  for (; i < cols; ++i) part[0][exponent_at(row + 2 * i)] += one(row[2 * i]);
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

int class_of(int exponent, int unit) {
  if (is_patched(exponent, unit)) return exponent > unit ? 3 : 0;
  return std::max(0, ((exponent - unit + 9) & 0xff) - 7);
}

// Whether any group has too many weights of class 0.
bool is_crowded(const std::uint8_t* row, std::int64_t cols, int unit) {
  const std::uint8_t s = static_cast<std::uint8_t>(unit), least = static_cast<std::uint8_t>(unit - 9);
  for (std::int64_t start = 0; start < cols; start += kGroupWeights) {
    Words weights;
    Bytes class0;
    load_group(row + 2 * start, cols - start, unit, weights);
    for (int p = 0; p < kGroupWeights; ++p) {
      const std::uint8_t exponent = static_cast<std::uint8_t>(weights[p] >> 7);
      const std::uint8_t over = static_cast<std::uint8_t>(exponent - least);
      class0[p] = over < 8 || (over > 10 && exponent <= s) ? 0x80 : 0;
    }
    if (std::popcount(top_bits(class0)) > kMostClass0) return true;
  }
  return false;
}

// Some weights as one: their squared error is the least if each stands for the mean of their magnitudes, and what that
// leaves of the sum of their squares is `energy`.
struct Lot {
  double count = 0, sum = 0;

  void add(std::uint64_t counted, int exponent) {
    const std::int64_t n = counted & 0xffffffff, mantissas = counted >> 32;
    count += static_cast<double>(n);
    sum += static_cast<double>(128 * n + mantissas) * std::bit_cast<double>((1023ull + exponent) << 52);
  }
  double energy() const { return count == 0 ? 0 : sum * sum / count; }
};

// Costs of one row with any unit.
class Costs {
 public:
  Costs(const std::uint8_t* row, std::int64_t cols) : row_(row), cols_(cols) {
    count_exponents(row, cols, counts_);
    for (int e = 0; e < 256; ++e) below_[e + 1] = below_[e] + count(e);
    while (first_ < 255 && count(first_) == 0) ++first_;
    while (last_ > 0 && count(last_) == 0) --last_;
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

  // What four magnitudes, the classes' means, keep of the sum of squares.
  double energy(int unit) const {
    Lot lots[4];
    for (int e = first_; e <= last_; ++e) lots[class_of(e, unit)].add(counts_[e], e);
    double total = 0;
    for (const Lot& lot : lots) total += lot.energy();
    return total;
  }

  // What one magnitude for each exponent keeps of it.
  double energy_of_exponents() const {
    double total = 0;
    for (int e = first_; e <= last_; ++e) {
      Lot lot;
      lot.add(counts_[e], e);
      total += lot.energy();
    }
    return total;
  }

 private:
  std::int64_t count(int exponent) const { return counts_[exponent & 0xff] & 0xffffffff; }

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
  int first_ = 0, last_ = 255;  // exponents that occur
};

// Of several with the greatest unit.
RowPlan shortest(const Costs& costs) {
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

}  // namespace

RowPlan plan_row(const std::uint8_t* row, std::int64_t cols) {
  const Costs costs(row, cols);
  const RowPlan best = shortest(costs);
  if (best.unit == 255) return best;
  const double all = costs.energy_of_exponents();
  const double gain = costs.energy(best.unit + 1) - costs.energy(best.unit);
  const double worth = static_cast<double>(cols) * gain;  // a byte a weight, were the relative error smaller by 1
  const auto pays = [&](const RowPlan& plan) { return static_cast<double>(plan.bytes - best.bytes) * all < worth; };
  RowPlan next = costs.without_gaps(best.unit + 1);
  if (!pays(next)) return best;
  next = costs.exact(next);
  return pays(next) && !does_not_pay(next, cols) && !is_crowded(row, cols, next.unit) ? next : best;
}

}  // namespace penstock
