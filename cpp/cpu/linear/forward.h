// Forward of a span of tokens: one walk, the state stays in cache.
#pragma once

#include "cpu/linear/operands.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Whatever is not computed in a chunk stays empty.
inline void accumulate(const LinearAttentionProblem& p, LinearSpan span, float* state,
                       float* scratch) {
  Arena arena(scratch);
  Chunk chunk{};
  chunk.dim = p.dim;
  chunk.keys = arena.take(p.dim, kPanel).data;
  chunk.values = arena.take(kChunk, padded_value_dim(p));
  chunk.state = {state, padded_value_dim(p)};
  ChunkDecay decay(Walk::kForwards);
  for (int n = 0; n < chunks_in(span); ++n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    chunk.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
    load_panel(key_rows(p, tokens), tokens.rows, p.dim, chunk.keys);
    load_values(p, tokens, chunk.values);
    update_state(chunk, decay);
  }
}

/// Epilogue: numerators leave the loop, divided if they are normalized.
inline void store_out(const LinearAttentionForward& p, const ChunkTokens& c, RowMajor out) {
  auto rows = rows_of(p.out, p.dtype, c.batch, c.head, c.begin);
  for (int r = 0; r < c.rows; ++r) {
    const float* row = out.data + r * out.stride;
    float factor = 1.0f;
    if (p.normalize) {
      float denominator = row[p.dim_v];
      factor = denominator == 0 ? 0.0f : 1.0f / denominator;
      std::int64_t token = std::int64_t{c.batch} * p.len + c.begin + r;
      p.denominator[token * p.heads_q + c.head] = denominator;
    }
    store_row(row, rows.row(r), p.dtype, p.dim_v, factor);
  }
}

inline void forward(const LinearAttentionForward& p, LinearSpan span, float* state,
                    float* scratch) {
  Arena arena(scratch);
  Chunk chunk{};
  chunk.dim = p.dim;
  chunk.queries = arena.take(kChunk, padded_dim(p));
  chunk.keys = arena.take(p.dim, kPanel).data;
  chunk.values = arena.take(kChunk, padded_value_dim(p));
  chunk.scores = arena.take(kChunk, kPanel);
  chunk.out = arena.take(kChunk, padded_value_dim(p));
  chunk.state = {state, padded_value_dim(p)};
  ChunkDecay decay(Walk::kForwards);
  for (int n = 0; n < chunks_in(span); ++n) {
    const ChunkTokens tokens = chunk_of(p, span, n);
    chunk.rows = tokens.rows;
    decay.compute(p.log_decay, tokens.batch, tokens.head, tokens.begin, tokens.rows);
    load_rows(query_rows(p, tokens), 0, tokens.rows, tokens.rows, p.dim, p.scale, chunk.queries);
    if (p.causal) {
      load_panel(key_rows(p, tokens), tokens.rows, p.dim, chunk.keys);
      load_values(p, tokens, chunk.values);
      const ChunkTokens next = chunk_of(p, span, imin(n + 1, chunks_in(span) - 1));
      prefetch_rows(key_rows(p, next), next.rows, p.dim);
      compute_scores(chunk, decay.walk());
      decay_scores(chunk, decay);
      prefetch_rows(query_rows(p, next), next.rows, p.dim);
      prefetch_rows(value_rows(p, next), next.rows, p.dim_v);
    }
    read_state(chunk, decay);
    if (p.causal) {
      add_values(chunk, decay.walk());
      update_state(chunk, decay);
    }
    store_out(p, tokens, chunk.out);
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
