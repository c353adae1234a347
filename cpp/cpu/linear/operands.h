// Tiles of a chunk's tokens in fp32: rows, or transposed; values with their denominator channel.
#pragma once

#include "cpu/linear/chunk.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Hands out the scratch of a task.
class Arena {
 public:
  explicit Arena(float* scratch) : next_(scratch) {}
  RowMajor take(std::int64_t rows, std::int64_t columns) {
    RowMajor taken{next_, columns};
    next_ += rows * columns;
    return taken;
  }

 private:
  float* next_;
};

/// Tiles for queries and keys of `dim` channels, values and out of `channels`; no state.
inline Chunk take_chunk(Arena& arena, int dim, int channels) {
  const int padded = round_up(channels, kColumnGranule);
  Chunk chunk{};
  chunk.dim = dim;
  chunk.queries = arena.take(kChunk, round_up(dim, kColumnGranule));
  chunk.keys = arena.take(dim, kPanel).data;
  chunk.values = arena.take(kChunk, padded);
  chunk.scores = arena.take(kChunk, kPanel);
  chunk.out = arena.take(kChunk, padded);
  return chunk;
}

/// A chunk of a span, and what belongs to all of its tiles.
struct ChunkTokens {
  int batch, head, kv_head;
  int begin, rows;
};

inline int chunks_in(LinearSpan span) { return ceil_div(span.end - span.begin, kChunk); }

/// Chunk n; head: query head.
inline ChunkTokens chunk_of(const LinearAttentionProblem& p, LinearSpan span, int n) {
  int begin = span.begin + n * kChunk;
  return {span.batch, span.head, span.head / (p.heads_q / p.heads_kv), begin,
          imin(kChunk, span.end - begin)};
}

/// Tokens to panel[dim][kPanel].
inline void load_panel(RowsInARow<const char> from, int rows, int dim, float* panel) {
  for (int d = 0; d < dim; d += kMaxDim)
    load_transposed(
        RowsInARow<const char>{from.data + d * bytes_of(from.dtype), from.stride, from.dtype}, rows,
        imin(kMaxDim, dim - d), panel + d * kPanel);
}

/// The same from rows already in scratch.
inline void transpose_rows(RowMajor from, int rows, int dim, float* panel) {
  constexpr std::int64_t kFloat = sizeof(float);
  load_panel({reinterpret_cast<const char*>(from.data), from.stride * kFloat, DType::kFloat32},
             rows, dim, panel);
}

/// out[row][channel] = panel[channel][kPanel], rows padded with zeros.
inline void transpose_panel(const float* panel, int dim, int rows, RowMajor out) {
  for (int t = 0; t < rows; t += kWidth)
    for (int d = 0; d < dim; d += kWidth) {
      Vec square[kWidth];
      for (int i = 0; i < kWidth; ++i)
        square[i] = d + i < dim ? load(panel + (d + i) * kPanel + t) : Vec{};
      transpose(square);
      for (int i = 0; i < imin(kWidth, rows - t); ++i) store(part(out, t + i, d).data, square[i]);
    }
}

inline RowsInARow<const char> query_rows(const LinearAttentionProblem& p, const ChunkTokens& c) {
  return rows_of(p.q, p.dtype, c.batch, c.head, c.begin);
}
inline RowsInARow<const char> key_rows(const LinearAttentionProblem& p, const ChunkTokens& c) {
  return rows_of(p.k, p.dtype, c.batch, c.kv_head, c.begin);
}
inline RowsInARow<const char> value_rows(const LinearAttentionProblem& p, const ChunkTokens& c) {
  return rows_of(p.v, p.dtype, c.batch, c.kv_head, c.begin);
}

inline RowsInARow<const char> dout_rows(const LinearAttentionBackward& p, const ChunkTokens& c) {
  return rows_of(p.dout, p.dtype, c.batch, c.head, c.begin);
}

/// Asks for the keys and values of a chunk that comes next, while another is computed.
inline void ask_for_keys(const LinearAttentionProblem& p, const ChunkTokens& c, Prefetches& ahead) {
  ahead.ask(key_rows(p, c), c.rows, p.dim);
  ahead.ask(value_rows(p, c), c.rows, p.dim_v);
}

/// Values, and 1 as their last channel where they are normalized.
inline void load_values(const LinearAttentionProblem& p, const ChunkTokens& c, RowMajor to) {
  load_rows(value_rows(p, c), 0, c.rows, c.rows, p.dim_v, 1.0f, to);
  for (int r = 0; r < c.rows && p.normalize; ++r) to.data[r * to.stride + p.dim_v] = 1.0f;
}

/// The gradient of numerator and denominator: dout / den, and -(dout . out) / den.
inline void load_dout(const LinearAttentionBackward& p, const ChunkTokens& c, RowMajor to) {
  load_rows(dout_rows(p, c), 0, c.rows, c.rows, p.dim_v, out_factor(p), to);
  if (!p.normalize) return;
  auto out_rows = rows_of(p.out, p.dtype, c.batch, c.head, c.begin);
  const float* denominators =
      p.denominator + (std::int64_t{c.batch} * p.len + c.begin) * p.heads_q + c.head;
  for (int r = 0; r < c.rows; ++r) {
    float denominator = denominators[std::int64_t{r} * p.heads_q];
    float inverse = denominator == 0 ? 0.0f : 1.0f / denominator;
    float out[kMaxLinearDim];
    load_row(out_rows.row(r), p.dtype, out, p.dim_v, 1.0f);
    float* dout = to.data + r * to.stride;
    float sum = 0;
    for (int d = 0; d < p.dim_v; ++d) {
      dout[d] *= inverse;
      sum += dout[d] * out[d];
    }
    dout[p.dim_v] = -sum;
  }
}

inline float dot(const float* a, const float* b, int count) {  // both padded with zeros
  Vec sum{};
  for (int i = 0; i < count; i += kWidth) sum += load(a + i) * load(b + i);
  return sum_lanes(sum);
}

/// to[column][row] = from[row][column], for the first `columns` of `rows`; the rest of to's rows 0.
inline void transpose_state(RowMajor from, int rows, int columns, RowMajor to) {
  for (int c = 0; c < columns; ++c) {
    float* row = to.data + c * to.stride;
    for (int r = 0; r < rows; ++r) row[r] = from.data[r * from.stride + c];
    fill(row + rows, to.stride - rows, 0.0f);
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
