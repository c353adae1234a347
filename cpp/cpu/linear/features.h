// Features of a chunk's tokens: what takes the place of queries and keys where they meet the state.
//
// taylor2: a token is x = token / dim^(1/4), so a = x_q . x_k is a score already, and its weight is
// 1 + a + a^2 / 2. The features are [1, x, x_i x_j for j < i with x_i^2 / sqrt 2 in between]: one
// for each pair, with the same inner products (states.h). They lie transposed, tokens side by side
// in the lanes of vectors; the rows after the first are the tokens themselves.
#pragma once

#include "cpu/linear/operands.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Of a panel of features [state_rows][kPanel]: the tokens, [dim][kPanel].
inline float* tokens_in(const LinearAttentionProblem& p, float* features) {
  return p.feature_map == FeatureMap::kTaylor2 ? features + kPanel : features;
}

/// visit(i, j, factor, n): feature n of the pairs is factor * x_i * x_j.
template <class Visit>
inline void for_each_pair(int dim, Visit visit) {
  constexpr float kRootOfHalf = 0.70710678f;
  for (int i = 0, n = 0; i < dim; ++i)
    for (int j = 0; j <= i; ++j, ++n) visit(i, j, i == j ? kRootOfHalf : 1.0f, n);
}

/// Tokens, times the factor, to features.
inline void load_features(const LinearAttentionProblem& p, RowsInARow<const char> from, int rows,
                          float factor, float* features) {
  float* x = tokens_in(p, features);
  load_panel(from, rows, p.dim, x);
  if (factor != 1.0f)
    for (float *row = x, *end = x + p.dim * kPanel; row < end; row += kPanel)
      for (int t = 0; t < rows; t += kWidth) store(row + t, factor * load(row + t));
  if (p.feature_map == FeatureMap::kNone) return;
  fill(features, round_up(rows, kColumnGranule), 1.0f);
  float* pairs = x + p.dim * kPanel;
  for_each_pair(p.dim, [&](int i, int j, float weight, int n) {
    for (int t = 0; t < rows; t += kWidth)
      store(pairs + n * kPanel + t, weight * load(x + i * kPanel + t) * load(x + j * kPanel + t));
  });
}

/// scores a <- 1 + a + a^2 / 2, and slopes, if not null, <- 1 + a
inline void weigh_scores(const Chunk& c, Walk walk, float* slopes) {
  for (int i = 0; i < c.rows; ++i) {
    Range reached = reached_by(i / kGroup, c.rows, walk);
    float* scores = c.scores.data + i * c.scores.stride;
    for (int j = reached.begin / kWidth * kWidth; j < reached.end; j += kWidth) {
      Vec slope = 1.0f + load(scores + j);
      store(scores + j, 0.5f + 0.5f * slope * slope);
      if (slopes) store(slopes + i * c.scores.stride + j, slope);
    }
  }
}

/// out_i = r_i phi(q_i)^T S, of `dim` features
inline void read_state(const Chunk& c, const ChunkDecay& decay, const float* queries, int dim) {
  product(c.rows, static_cast<int>(c.out.stride), dim, {queries, 1, kPanel}, c.state, c.out, 0.0f);
  for (int i = 0; i < c.rows; ++i)
    for (std::int64_t e = 0; e < c.out.stride; e += kWidth) {
      float* out = c.out.data + i * c.out.stride + e;
      store(out, decay.row(i) * load(out));
    }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
