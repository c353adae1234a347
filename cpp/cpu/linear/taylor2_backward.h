// Backward with the features of taylor2, in the two sweeps of backward.h.
//
// The gradient of a chunk's features, G = S (r dout)^T or dS (r v)^T, goes through the derivative
// of the features to the tokens. Inside of the chunk, a score's gradient is dP_ij (1 + a_ij).
#pragma once

#include "cpu/linear/backward.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// scores *= slopes
inline void multiply_scores(const Chunk& c, Walk walk, const float* slopes) {
  for (int i = 0; i < c.rows; ++i) {
    Range reached = reached_by(i / kGroup, c.rows, walk);
    for (int j = reached.begin / kWidth * kWidth; j < reached.end; j += kWidth) {
      std::int64_t at = i * c.scores.stride + j;
      store(c.scores.data + at, load(c.scores.data + at) * load(slopes + at));
    }
  }
}

/// sums[t] = a_t . b_t, panels of `dim` rows. In parts: dlog_decay adds these up over all tokens.
inline void dot_columns(const float* a, const float* b, int dim, int rows, float* sums) {
  constexpr int kPart = 8;
  for (int t = 0; t < rows; t += kWidth) {
    Vec sum{};
    for (int first = 0; first < dim; first += kPart) {
      Vec part{};
      for (int d = first; d < imin(first + kPart, dim); ++d)
        part += load(a + d * kPanel + t) * load(b + d * kPanel + t);
      sum += part;
    }
    store(sums + t, sum);
  }
}

/// From the gradient of features, which is used up, to that of their tokens, in rows.
inline void pull_back(const LinearAttentionProblem& p, float* gradient, float* features, int rows,
                      RowMajor out) {
  const float* x = tokens_in(p, features);
  float* dx = tokens_in(p, gradient);
  const float* dpairs = dx + p.dim * kPanel;
  for (int t = 0; t < rows; t += kWidth)
    for_each_pair(p.dim, [&](int i, int j, float weight, int n) {
      const int at_i = i * kPanel + t, at_j = j * kPanel + t;
      Vec dpair = weight * load(dpairs + n * kPanel + t);
      store(dx + at_i, load(dx + at_i) + dpair * load(x + at_j));
      store(dx + at_j, load(dx + at_j) + dpair * load(x + at_i));
    });
  transpose_panel(dx, p.dim, rows, out);
}

inline void taylor2_backward_queries(const LinearAttentionBackward& p, LinearSpan span,
                                     float* state, float* scratch) {
  Arena arena(scratch);
  Chunk attention{};  // q, k
  attention.dim = p.dim;
  attention.queries = arena.take(kChunk, padded_dim(p));
  attention.scores = arena.take(kChunk, kPanel);
  Chunk for_dq = take_chunk(arena, value_dim(p), p.dim);  // dout, v, k
  Chunk features{};                                       // k, v
  features.dim = state_rows(p);
  features.keys = arena.take(features.dim, kPanel).data;
  features.values = arena.take(kChunk, padded_value_dim(p));
  features.state = {state, padded_value_dim(p)};
  attention.keys = tokens_in(p, features.keys);
  float* slopes = arena.take(kChunk, kPanel).data;
  float* dout = arena.take(value_dim(p), kPanel).data;
  float* queries = arena.take(features.dim, kPanel).data;
  float* gradient = arena.take(features.dim, kPanel).data;
  const RowWriter writer(p.dtype, result_size(p));
  ChunkDecay decay(Walk::kForwards);
  for (int n = 0; n < chunks_in(span); ++n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    const int rows = attention.rows = for_dq.rows = features.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, rows);
    load_dout(p, tokens, for_dq.queries);
    transpose_rows(for_dq.queries, rows, value_dim(p), dout);
    load_features(p, query_rows(p, tokens), rows, query_factor(p), queries);
    if (p.causal) {
      load_rows(query_rows(p, tokens), 0, rows, rows, p.dim, query_factor(p), attention.queries);
      load_features(p, key_rows(p, tokens), rows, key_factor(p), features.keys);
      load_rows(key_rows(p, tokens), 0, rows, rows, p.dim, key_factor(p), for_dq.values);
      load_values(p, tokens, features.values);
      transpose_rows(features.values, rows, value_dim(p), for_dq.keys);
      compute_scores(attention, decay.walk());
      weigh_scores(attention, decay.walk(), slopes);
      compute_scores(for_dq, decay.walk());
      multiply_scores(for_dq, decay.walk(), slopes);
      decay_scores(for_dq, decay);
    }
    read_transposed(features.state, features.dim, value_dim(p), rows, decay, dout, gradient,
                    nullptr);
    if (p.dlog_decay) {
      float received[kChunk];
      dot_columns(gradient, queries, features.dim, rows, received);
      for (int r = 0; r < rows; ++r) *dlog_decay_at(p, tokens, r) = received[r];
    }
    pull_back(p, gradient, queries, rows, for_dq.out);
    if (p.causal) {
      add_values(for_dq, decay.walk());
      update_state(features, decay);
    }
    auto dq = rows_of(p.dq, p.dtype, tokens.batch, tokens.head, tokens.begin);
    for (int r = 0; r < rows; ++r)
      writer.write(part(for_dq.out, r).data, dq.row(r), p.dim, query_factor(p));
  }
}

/// The tiles of the sweep backwards.
struct Taylor2KeySweep {
  Chunk for_dk, for_dv;
  Chunk features;  // q, dout
  RowMajor dstates;
  float *keys, *gradient, *values, *slopes;
  RowMajor dk, dv;  // sums over the query heads of a key head
  Prefetches ahead;

  Taylor2KeySweep(const LinearAttentionBackward& p, float* dstates_of_heads, Arena& arena)
      : for_dk(take_chunk(arena, value_dim(p), p.dim)),
        for_dv{},
        features{},
        dstates{dstates_of_heads, padded_value_dim(p)} {
    features.dim = state_rows(p);
    features.keys = arena.take(features.dim, kPanel).data;
    features.values = arena.take(kChunk, padded_value_dim(p));
    for_dv.dim = p.dim;
    for_dv.queries = arena.take(kChunk, padded_dim(p));
    for_dv.keys = tokens_in(p, features.keys);
    for_dv.values = features.values;
    for_dv.scores = arena.take(kChunk, kPanel);
    for_dv.out = arena.take(kChunk, padded_value_dim(p));
    for_dk.ahead = for_dv.ahead = features.ahead = &ahead;
    keys = arena.take(features.dim, kPanel).data;
    gradient = arena.take(features.dim, kPanel).data;
    values = arena.take(value_dim(p), kPanel).data;
    slopes = arena.take(kChunk, kPanel).data;
    dk = arena.take(kChunk, padded_dim(p));
    dv = arena.take(kChunk, padded_value_dim(p));
  }

  void choose_head(const LinearAttentionBackward& p, int n) {
    features.state = for_dv.state = part(dstates, n * state_rows(p));
  }

  void load(const LinearAttentionBackward& p, const ChunkTokens& c) {
    for_dk.rows = for_dv.rows = features.rows = c.rows;
    load_rows(key_rows(p, c), 0, c.rows, c.rows, p.dim, key_factor(p), for_dv.queries);
    load_features(p, key_rows(p, c), c.rows, key_factor(p), keys);
    load_rows(query_rows(p, c), 0, c.rows, c.rows, p.dim, query_factor(p), for_dk.values);
    load_features(p, query_rows(p, c), c.rows, query_factor(p), features.keys);
    load_values(p, c, for_dk.queries);
    transpose_rows(for_dk.queries, c.rows, value_dim(p), values);
    load_dout(p, c, features.values);
    transpose_rows(features.values, c.rows, value_dim(p), for_dk.keys);
  }
};

/// One chunk of query head n of its key head.
inline void backward_keys_chunk(const LinearAttentionBackward& p, const ChunkTokens& tokens, int n,
                                const ChunkDecay& decay, double& product, Taylor2KeySweep& sweep) {
  Chunk &dk = sweep.for_dk, &dv = sweep.for_dv, &features = sweep.features;
  const int rows = tokens.rows;
  Given given;
  sweep.choose_head(p, n);
  sweep.load(p, tokens);
  if (p.causal) {
    compute_scores(dv, decay.walk());
    compute_scores(dk, decay.walk());
    weigh_scores(dv, decay.walk(), sweep.slopes);
    decay_scores(dv, decay);
    if (p.dlog_decay) sum_pairs(dk, dv, given.pairs);
    multiply_scores(dk, decay.walk(), sweep.slopes);
    decay_scores(dk, decay);
  }
  read_transposed(features.state, features.dim, value_dim(p), rows, decay, sweep.values,
                  sweep.gradient, features.ahead);
  if (p.dlog_decay) {
    dot_columns(sweep.gradient, sweep.keys, features.dim, rows, given.after);
    sum_dlog_decay(p, tokens, decay, given, product);
  }
  pull_back(p, sweep.gradient, sweep.keys, rows, dk.out);
  read_state(dv, decay, sweep.keys, features.dim);
  if (p.causal) {
    for (Chunk* chunk : {&dk, &dv}) add_values(*chunk, decay.walk());
    update_state(features, decay);
  }
  add_out(dk, n, sweep.dk);
  add_out(dv, n, sweep.dv);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
