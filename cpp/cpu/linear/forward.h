// Forward of a span of tokens: one walk, the state stays in cache.
#pragma once

#include "cpu/linear/features.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Whatever is not computed in a chunk stays empty.
inline void accumulate(const LinearAttentionProblem& p, LinearSpan span, float* state,
                       float* scratch) {
  Arena arena(scratch);
  Chunk chunk{};
  chunk.dim = state_rows(p);
  chunk.keys = arena.take(chunk.dim, kPanel).data;
  chunk.values = arena.take(kChunk, padded_value_dim(p));
  chunk.state = {state, padded_value_dim(p)};
  ChunkDecay decay(Walk::kForwards);
  for (int n = 0; n < chunks_in(span); ++n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    chunk.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
    load_features(p, key_rows(p, tokens), tokens.rows, key_factor(p), chunk.keys);
    load_values(p, tokens, chunk.values);
    update_state(chunk, decay);
  }
}

/// Epilogue: numerators leave the loop, divided if they are normalized.
inline void store_out(const LinearAttentionForward& p, const ChunkTokens& c, RowMajor out,
                      const RowWriter& writer) {
  auto rows = rows_of(p.out, p.dtype, c.batch, c.head, c.begin);
  for (int r = 0; r < c.rows; ++r) {
    const float* row = out.data + r * out.stride;
    float factor = out_factor(p);
    if (p.normalize) {
      float denominator = factor * row[p.dim_v];
      factor = denominator == 0 ? 0.0f : factor / denominator;
      std::int64_t token = std::int64_t{c.batch} * p.len + c.begin + r;
      p.denominator[token * p.heads_q + c.head] = denominator;
    }
    writer.write(row, rows.row(r), p.dim_v, factor);
  }
}

inline void forward(const LinearAttentionForward& p, LinearSpan span, float* state,
                    float* scratch) {
  Arena arena(scratch);
  Chunk chunk{};
  chunk.dim = p.dim;
  chunk.queries = arena.take(kChunk, padded_dim(p));
  float* keys = arena.take(state_rows(p), kPanel).data;
  chunk.keys = tokens_in(p, keys);
  chunk.values = arena.take(kChunk, padded_value_dim(p));
  chunk.scores = arena.take(kChunk, kPanel);
  chunk.out = arena.take(kChunk, padded_value_dim(p));
  chunk.state = {state, padded_value_dim(p)};
  Prefetches ahead;
  chunk.ahead = &ahead;
  const bool taylor2 = p.feature_map == FeatureMap::kTaylor2;
  Chunk features = chunk;  // as the state meets them
  features.dim = state_rows(p);
  features.keys = keys;
  float* queries = taylor2 ? arena.take(features.dim, kPanel).data : nullptr;
  const RowWriter writer(p.dtype, result_size(p));
  ChunkDecay decay(Walk::kForwards);
  for (int n = 0; n < chunks_in(span); ++n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    chunk.rows = features.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
    load_rows(query_rows(p, tokens), 0, tokens.rows, tokens.rows, p.dim, query_factor(p),
              chunk.queries);
    if (p.causal) {
      load_features(p, key_rows(p, tokens), tokens.rows, key_factor(p), keys);
      load_values(p, tokens, chunk.values);
      const ChunkTokens next = chunk_of(p, span, imin(n + 1, chunks_in(span) - 1));
      ask_for_keys(p, next, ahead);
      ahead.ask(query_rows(p, next), next.rows, p.dim);
      compute_scores(chunk, decay.walk());
      if (taylor2) weigh_scores(chunk, decay.walk(), nullptr);
      decay_scores(chunk, decay);
    }
    if (taylor2) {
      load_features(p, query_rows(p, tokens), tokens.rows, query_factor(p), queries);
      read_state(chunk, decay, queries, features.dim);
    } else {
      read_state(chunk, decay);
    }
    if (p.causal) {
      add_values(chunk, decay.walk());
      update_state(features, decay);
    }
    store_out(p, tokens, chunk.out, writer);
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
