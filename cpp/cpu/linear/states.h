// States between the caller's memory and scratch, whose last column is z.
//
// taylor2: to the rows of x_i x_j and x_j x_i tokens add the same, and of them they read the sum.
// Scratch has one row for both, (S_ij + S_ji) / sqrt 2, which leaves inner products as they are.
// What is left of a state that the caller gives, (S_ij - S_ji) / 2, no token meets: it decays.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/linear/plan.h"

namespace tileattn::cpu {

/// A row of the caller's state: where it is in scratch, and the caller's row that is there too.
struct StateRow {
  int kept, mirrored;
  float weight;
};

inline StateRow state_row(const LinearAttentionProblem& p, int row) {
  const int pairs = 1 + p.dim, pair = row - pairs;
  if (p.feature_map == FeatureMap::kNone || pair < 0) return {row, row, 1.0f};
  const int i = pair / p.dim, j = pair % p.dim, larger = std::max(i, j);
  const int kept = pairs + larger * (larger + 1) / 2 + std::min(i, j);
  return {kept, pairs + j * p.dim + i, i == j ? 1.0f : std::sqrt(0.5f)};
}

/// The first row of a head's state in the caller's memory, and the rows that it has.
inline std::int64_t first_row(const LinearAttentionProblem& p, int sequence, int head) {
  return (std::int64_t{sequence} * p.heads_q + head) * feature_dim(p.feature_map, p.dim);
}

inline void load_state(const LinearAttentionProblem& p, ConstStateRef from, int sequence, int head,
                       float* to) {
  std::fill(to, to + state_size(p), 0.0f);
  if (!from.s) return;
  const std::int64_t first = first_row(p, sequence, head);
  for (int d = 0; d < feature_dim(p.feature_map, p.dim); ++d) {
    const StateRow row = state_row(p, d);
    const float* s = from.s + (first + d) * p.dim_v;
    float* kept = to + std::int64_t{row.kept} * padded_value_dim(p);
    for (int e = 0; e < p.dim_v; ++e) kept[e] += row.weight * s[e];
    if (p.normalize) kept[p.dim_v] += row.weight * from.z[first + d];
  }
}

/// The decay of a state over the span.
inline float decay_over(const LinearAttentionProblem& p, LinearSpan span) {
  const DecayRef& decay = p.log_decay;
  double sum = 0;
  for (int t = span.begin; t < span.end && decay.data; ++t)
    sum += decay.data[span.batch * decay.batch_stride + t * decay.token_stride +
                      span.head * decay.head_stride];
  return static_cast<float>(std::exp(sum));
}

/// given: the caller's state at the other end of all tokens of the sequence, or null.
inline void store_state(const LinearAttentionProblem& p, const float* from, int sequence,
                        LinearSpan tokens, ConstStateRef given, StateRef to) {
  if (!to.s) return;
  const std::int64_t first = first_row(p, sequence, tokens.head);
  const bool rest = given.s && p.feature_map != FeatureMap::kNone;
  const float half = rest ? 0.5f * decay_over(p, tokens) : 0.0f;
  for (int d = 0; d < feature_dim(p.feature_map, p.dim); ++d) {
    const StateRow row = state_row(p, d);
    const float* kept = from + std::int64_t{row.kept} * padded_value_dim(p);
    float* s = to.s + (first + d) * p.dim_v;
    for (int e = 0; e < p.dim_v; ++e) s[e] = row.weight * kept[e];
    if (p.normalize) to.z[first + d] = row.weight * kept[p.dim_v];
    if (!rest || row.mirrored == d) continue;
    const float* own = given.s + (first + d) * p.dim_v;
    const float* other = given.s + (first + row.mirrored) * p.dim_v;
    for (int e = 0; e < p.dim_v; ++e) s[e] += half * (own[e] - other[e]);
    if (p.normalize) to.z[first + d] += half * (given.z[first + d] - given.z[first + row.mirrored]);
  }
}

/// <S, dS> of states in scratch.
inline double dot(const float* a, const float* b, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

/// <S, dS> of what is left of both, which is the same at all tokens.
inline double dot_of_rest(const LinearAttentionProblem& p, ConstStateRef initial,
                          ConstStateRef dfinal, int sequence, LinearSpan tokens) {
  if (p.feature_map == FeatureMap::kNone || !initial.s || !dfinal.s) return 0;
  const std::int64_t first = first_row(p, sequence, tokens.head);
  double sum = 0;
  for (int d = 0; d < feature_dim(p.feature_map, p.dim); ++d) {
    const int other = state_row(p, d).mirrored;
    auto add = [&](const float* a, const float* b, int columns) {
      a += first * columns;
      b += first * columns;
      for (int e = 0; e < columns; ++e) {
        const int at = d * columns + e, across = other * columns + e;
        sum += 0.25 * (double(a[at]) - a[across]) * (double(b[at]) - b[across]);
      }
    };
    add(initial.s, dfinal.s, p.dim_v);
    if (p.normalize) add(initial.z, dfinal.z, 1);
  }
  return sum * decay_over(p, tokens);
}

}  // namespace tileattn::cpu
