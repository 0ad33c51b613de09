// Which experts the rows of a mixture go to, and with what weights (arXiv 2101.03961; sigmoids: arXiv 2412.19437).
#pragma once

#include "kernels/generic/backend.h"
#include "kernels/generic/columns.h"
#include "kernels/generic/exp.h"
#include "kernels/kernels.h"

namespace penstock {
namespace {

// scores[e] of every expert, from its logit: a softmax in attention's sequence of operations, or sigmoids. All arrays
// have room for whole vectors.
template <VectorBackend V>
void expert_scores(const float* logits, std::int64_t experts, bool sigmoid, float* scores) {
  const V one = V::broadcast(1.0f), minus_infinity = V::broadcast(-__builtin_inff());
  const auto logits_at = [&](std::int64_t e) {
    if (e + 16 <= experts) return V::load(logits + e);
    const int rest = static_cast<int>(experts - e);
    return V::select(V::first(rest), V::load(logits + e, rest), minus_infinity);
  };
  if (sigmoid) {
    for (std::int64_t e = 0; e < experts; e += 16) {
      V::store(scores + e, V::div(one, V::add(one, exp_lanes(V::neg(logits_at(e))))));
    }
    return;
  }
  V maximum = minus_infinity, sums = V::zero();
  for (std::int64_t e = 0; e < experts; e += 16) maximum = V::max(logits_at(e), maximum);
  maximum = V::broadcast(V::reduce_max(maximum));
  for (std::int64_t e = 0; e < experts; e += 16) {
    const V part = exp_lanes(V::sub(logits_at(e), maximum));
    V::store(scores + e, part);
    sums = V::add(sums, part);
  }
  const V sum = V::broadcast(V::sum(sums));
  for (std::int64_t e = 0; e < experts; e += 16) V::store(scores + e, V::div(V::load(scores + e), sum));
}

// The best of the choices that is still to be had, the first of equals; what is NaN comes last.
inline std::int64_t best_of(const float* choices, const std::uint8_t* taken, std::int64_t experts) {
  std::int64_t best = -1;
  for (std::int64_t e = 0; e < experts; ++e) {
    if (taken[e] == 0 && (best < 0 || choices[e] > choices[best] || choices[best] != choices[best])) best = e;
  }
  return best;
}

// Leaves those of the `kept_groups` groups whose two best choices have the largest sums, ties to the lower group.
inline void drop_groups(const RouteArgs& a, const float* choices, std::uint8_t* taken) {
  const std::int64_t size = a.logits.cols / a.groups;
  for (std::int64_t g = 0; g < a.groups; ++g) taken[g * size] = 2;  // a group that is out, until it is chosen
  for (std::int64_t kept = 0; kept < a.kept_groups; ++kept) {
    std::int64_t chosen = -1;
    float most = 0;
    for (std::int64_t g = 0; g < a.groups; ++g) {
      if (taken[g * size] != 2) continue;
      float first = -__builtin_inff(), second = first;
      for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
        second = choices[e] > first ? first : choices[e] > second ? choices[e] : second;
        first = choices[e] > first ? choices[e] : first;
      }
      const float sum = first + second;
      if (chosen < 0 || sum > most || most != most) chosen = g, most = sum;
    }
    taken[chosen * size] = 0;
  }
  for (std::int64_t g = 0; g < a.groups; ++g) {
    if (taken[g * size] != 2) continue;
    for (std::int64_t e = g * size; e < (g + 1) * size; ++e) taken[e] = 1;
  }
}

// The weights of the experts of one row: chosen in the order of their choices, ties to the lower number, told in the
// order of their numbers.
template <VectorBackend V>
void route_row(const RouteArgs& a, std::int64_t row, float* scores, float* choices, std::uint8_t* taken) {
  const std::int64_t experts = a.logits.cols;
  expert_scores<V>(row_of(a.logits, row), experts, a.sigmoid, scores);
  for (std::int64_t e = 0; e < experts; ++e) choices[e] = a.bias == nullptr ? scores[e] : scores[e] + a.bias[e];
  for (std::int64_t e = 0; e < experts; ++e) taken[e] = 0;
  if (a.kept_groups < a.groups) drop_groups(a, choices, taken);
  float sum = 0;
  for (std::int64_t i = 0; i < a.chosen; ++i) {
    const std::int64_t best = best_of(choices, taken, experts);
    taken[best] = 3;
    sum += scores[best];
  }
  if (a.sigmoid) sum += 1e-20f;
  std::int32_t* ids = a.ids + row * a.chosen;
  float* weights = a.weights + row * a.chosen;
  for (std::int64_t e = 0, i = 0; i < a.chosen; ++e) {
    if (taken[e] != 3) continue;
    ids[i] = static_cast<std::int32_t>(e);
    weights[i++] = (a.renormalize ? scores[e] / sum : scores[e]) * a.scaling;
  }
}

template <VectorBackend V>
void route(const RouteArgs& a, std::int64_t begin, std::int64_t end, Scratch scratch) {
  const std::int64_t padded = (a.logits.cols + 15) / 16 * 16;
  float* scores = reinterpret_cast<float*>(scratch.data);
  float* choices = scores + padded;
  std::uint8_t* taken = reinterpret_cast<std::uint8_t*>(choices + padded);
  for (std::int64_t row = begin; row < end; ++row) route_row<V>(a, row, scores, choices, taken);
}

}  // namespace
}  // namespace penstock
