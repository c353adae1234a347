// Backward of a span of tokens, in two sweeps: forwards in time for dq, which computes the state
// again, and backwards in time for dk and dv, which computes its gradient. Roles: chunk.h. What dk
// reads, v dS^T, comes out transposed from dS as it is: one dS serves both.
//
// The gradient of log_decay_t is all that tokens before t give to tokens from t on:
//   sum over j < t <= i of what i receives from j, inside of the chunk
//   + what all i >= t receive from before the chunk + what all j < t give to after the chunk
//   + what passes through the chunk = <S, dS> after the chunk - what all j give to after it.
// Only the last is a difference; <S, dS> before the chunk, for the chunk before, follows from it.
#pragma once

#include "cpu/linear/features.h"

namespace tileattn::cpu::TILEATTN_ISA {

inline float* dlog_decay_at(const LinearAttentionBackward& p, const ChunkTokens& c, int row) {
  std::int64_t token = std::int64_t{c.batch} * p.len + c.begin + row;
  return p.dlog_decay + token * p.heads_q + c.head;
}

inline void accumulate_gradient(const LinearAttentionBackward& p, LinearSpan span, float* dstate,
                                float* scratch) {
  Arena arena(scratch);
  Chunk chunk{};
  chunk.dim = state_rows(p);
  chunk.keys = arena.take(chunk.dim, kPanel).data;
  chunk.values = arena.take(kChunk, padded_value_dim(p));
  chunk.state = {dstate, padded_value_dim(p)};
  ChunkDecay decay(Walk::kBackwards);
  for (int n = chunks_in(span) - 1; n >= 0; --n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    chunk.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
    load_features(p, query_rows(p, tokens), tokens.rows, query_factor(p), chunk.keys);
    load_dout(p, tokens, chunk.values);
    update_state(chunk, decay);
  }
}

inline void backward_queries(const LinearAttentionBackward& p, LinearSpan span, float* state,
                             float* scratch) {
  Arena arena(scratch);
  const RowMajor plain_state{state, padded_value_dim(p)};
  Chunk chunk = take_chunk(arena, value_dim(p), p.dim);
  chunk.state = arena.take(value_dim(p), padded_dim(p));
  RowMajor v = arena.take(kChunk, padded_value_dim(p)), q = arena.take(kChunk, padded_dim(p));
  Prefetches ahead;
  chunk.ahead = &ahead;
  transpose_state(plain_state, p.dim, value_dim(p), chunk.state);
  const RowWriter writer(p.dtype, result_size(p));
  ChunkDecay decay(Walk::kForwards);
  for (int n = 0; n < chunks_in(span); ++n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    chunk.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
    load_dout(p, tokens, chunk.queries);
    if (p.causal) {
      load_values(p, tokens, v);
      transpose_rows(v, tokens.rows, value_dim(p), chunk.keys);
      load_rows(key_rows(p, tokens), 0, tokens.rows, tokens.rows, p.dim, 1.0f, chunk.values);
      const ChunkTokens next = chunk_of(p, span, imin(n + 1, chunks_in(span) - 1));
      ask_for_keys(p, next, ahead);
      ahead.ask(dout_rows(p, next), next.rows, p.dim_v);
      compute_scores(chunk, decay.walk());
      decay_scores(chunk, decay);
    }
    read_state(chunk, decay);
    if (p.dlog_decay) {
      load_rows(query_rows(p, tokens), 0, tokens.rows, tokens.rows, p.dim, p.scale, q);
      for (int r = 0; r < tokens.rows; ++r)
        *dlog_decay_at(p, tokens, r) =
            dot(chunk.out.data + r * chunk.out.stride, q.data + r * q.stride, padded_dim(p));
    }
    if (p.causal) {
      add_values(chunk, decay.walk());
      update_state(chunk, decay);
    }
    auto dq = rows_of(p.dq, p.dtype, tokens.batch, tokens.head, tokens.begin);
    for (int r = 0; r < tokens.rows; ++r)
      writer.write(chunk.out.data + r * chunk.out.stride, dq.row(r), p.dim, p.scale);
  }
  transpose_state(chunk.state, value_dim(p), p.dim, plain_state);
}

/// gradient[dim][kPanel] = S (r x)^T for x [channels][kPanel]
inline void read_transposed(RowMajor state, int dim, int channels, int rows,
                            const ChunkDecay& decay, float* x, float* gradient, Prefetches* ahead) {
  if (decay.total() != 1.0f) scale_columns(x, channels, rows, decay.rows());
  product(dim, round_up(rows, kColumnGranule), channels, {state.data, state.stride, 1}, {x, kPanel},
          {gradient, kPanel}, 0.0f, ahead);
}

/// The tiles of the sweep backwards: two chunks that share them.
struct KeySweep {
  Chunk for_dk, for_dv;
  RowMajor dstates;          // of all query heads of the key head
  float *values, *gradient;  // panels: v, and what it reads
  RowMajor dk, dv;           // sums over the heads
  Prefetches ahead;

  KeySweep(const LinearAttentionBackward& p, float* dstates_of_heads, Arena& arena)
      : for_dk(take_chunk(arena, value_dim(p), p.dim)),
        for_dv(take_chunk(arena, p.dim, value_dim(p))),
        dstates{dstates_of_heads, padded_value_dim(p)} {
    values = arena.take(value_dim(p), kPanel).data;
    gradient = arena.take(p.dim, kPanel).data;
    dk = arena.take(kChunk, padded_dim(p));
    dv = arena.take(kChunk, padded_value_dim(p));
    for_dk.ahead = for_dv.ahead = &ahead;
  }

  void choose_head(const LinearAttentionBackward& p, int n) {
    for_dv.state = part(dstates, n * p.dim);
  }

  void load(const LinearAttentionBackward& p, const ChunkTokens& c) {
    for_dk.rows = for_dv.rows = c.rows;
    load_rows(key_rows(p, c), 0, c.rows, c.rows, p.dim, 1.0f, for_dv.queries);
    load_values(p, c, for_dk.queries);
    load_rows(query_rows(p, c), 0, c.rows, c.rows, p.dim, p.scale, for_dk.values);
    load_dout(p, c, for_dv.values);
    transpose_rows(for_dk.queries, c.rows, value_dim(p), values);
    transpose_rows(for_dk.values, c.rows, p.dim, for_dv.keys);
    transpose_rows(for_dv.values, c.rows, value_dim(p), for_dk.keys);
  }
};

/// What tokens give to others, of a chunk.
struct Given {
  float pairs[kChunk];  // at t: by those before t to those from t on
  float after[kChunk];  // by each to after the chunk
};

/// Scores of dv are decayed already, those of dk are not.
inline void sum_pairs(const Chunk& for_dk, const Chunk& for_dv, float* pairs) {
  const int rows = for_dk.rows;
  float received[kChunk] = {};  // by each token, from those before t
  for (int t = 0; t < rows; ++t) {
    float sum = 0;
    for (int i = t; i < rows; ++i) sum += received[i];
    pairs[t] = sum;
    const float* a = for_dv.scores.data + t * kPanel;
    const float* b = for_dk.scores.data + t * kPanel;
    for (int i = t + 1; i < rows; ++i) received[i] += a[i] == 0 ? 0.0f : a[i] * b[i];
  }
}

/// Completes dlog_decay, where the sweep forwards left what each token receives from before the
/// chunk; product: <S, dS>, from after the chunk to before it.
inline void sum_dlog_decay(const LinearAttentionBackward& p, const ChunkTokens& c,
                           const ChunkDecay& decay, const Given& by, double& product) {
  constexpr float kNothing = 0x1p-24f;  // what is left of S is below its rounding errors
  double given[kChunk + 1] = {};        // by tokens before t, to after the chunk
  for (int t = 0; t < c.rows; ++t) given[t + 1] = given[t] + by.after[t];
  double through = decay.total() < kNothing ? 0.0 : product - given[c.rows], received = 0;
  for (int t = c.rows - 1; t >= 0; --t) {
    float* dlog_decay = dlog_decay_at(p, c, t);
    received += *dlog_decay;
    *dlog_decay = static_cast<float>(through + received + given[t] + by.pairs[t]);
  }
  product = through + received;
}

/// What query head n gives to the sum over heads, which begins as the first head's.
inline void add_out(Chunk& of_head, int n, RowMajor& sum) {
  const RowMajor out = of_head.out;
  if (n == 0) {
    of_head.out = sum;
    sum = out;
    return;
  }
  for (std::int64_t i = 0; i < of_head.rows * out.stride; i += kWidth)
    store(sum.data + i, load(sum.data + i) + load(out.data + i));
}

/// One chunk of query head n of its key head.
inline void backward_keys_chunk(const LinearAttentionBackward& p, const ChunkTokens& tokens, int n,
                                const ChunkDecay& decay, double& product, KeySweep& sweep) {
  Chunk &dk = sweep.for_dk, &dv = sweep.for_dv;
  Given given;
  sweep.choose_head(p, n);
  sweep.load(p, tokens);
  if (p.causal) {
    compute_scores(dv, decay.walk());
    compute_scores(dk, decay.walk());
    decay_scores(dv, decay);
    if (p.dlog_decay) sum_pairs(dk, dv, given.pairs);
    decay_scores(dk, decay);
  }
  read_transposed(dv.state, p.dim, value_dim(p), tokens.rows, decay, sweep.values, sweep.gradient,
                  dv.ahead);
  transpose_panel(sweep.gradient, p.dim, tokens.rows, dk.out);
  if (p.dlog_decay) {
    for (int t = 0; t < tokens.rows; ++t)
      given.after[t] = dot(part(dk.out, t).data, part(dv.queries, t).data, round_up(p.dim, kWidth));
    sum_dlog_decay(p, tokens, decay, given, product);
  }
  read_state(dv, decay);
  if (p.causal) {
    for (Chunk* chunk : {&dk, &dv}) add_values(*chunk, decay.walk());
    update_state(dv, decay);
  }
  add_out(dk, n, sweep.dk);
  add_out(dv, n, sweep.dv);
}

/// Asks for what follows a chunk of the n-th query head: the next head's, or the chunk before.
inline void ask_for_next(const LinearAttentionBackward& p, LinearSpan span, int chunk,
                         int first_head, int n, Prefetches& ahead) {
  const bool last = n + 1 == p.heads_q / p.heads_kv;
  if (last && chunk == 0) return;
  span.head = first_head + (last ? 0 : n + 1);
  const ChunkTokens next = chunk_of(p, span, last ? chunk - 1 : chunk);
  if (last) ask_for_keys(p, next, ahead);
  ahead.ask(query_rows(p, next), next.rows, p.dim);
  ahead.ask(dout_rows(p, next), next.rows, p.dim_v);
}

template <class Sweep>
void backward_keys(const LinearAttentionBackward& p, LinearSpan span, float* dstates,
                   double* products, float* scratch) {
  const int group = p.heads_q / p.heads_kv, kv_head = span.head;
  Arena arena(scratch);
  Sweep sweep(p, dstates, arena);
  const RowWriter writer(p.dtype, result_size(p));
  ChunkDecay decay(Walk::kBackwards);
  for (int chunk = chunks_in(span) - 1; chunk >= 0; --chunk) {
    ChunkTokens tokens{};
    for (int n = 0; n < group; ++n) {
      ask_for_next(p, span, chunk, kv_head * group, n, sweep.ahead);
      span.head = kv_head * group + n;
      tokens = chunk_of(p, span, chunk);
      decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
      backward_keys_chunk(p, tokens, n, decay, products[n], sweep);
    }
    auto dk = rows_of(p.dk, p.dtype, tokens.batch, kv_head, tokens.begin);
    auto dv = rows_of(p.dv, p.dtype, tokens.batch, kv_head, tokens.begin);
    for (int r = 0; r < tokens.rows; ++r) {
      writer.write(sweep.dk.data + r * sweep.dk.stride, dk.row(r), p.dim, key_factor(p));
      writer.write(sweep.dv.data + r * sweep.dv.stride, dv.row(r), p.dim_v, 1.0f);
    }
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
