// Backward: a task owns some key tiles of one (sequence, key head), so that dK, dV
// and columns of dbias have one writer; its share of dQ is summed up afterwards.
//   p = exp(s - lse)    dv += p^T dout    ds = p (dout v^T - delta)
//   dk += ds^T q        dq += ds k
#pragma once

#include "cpu/pack.h"
#include "cpu/scores.h"
#include "cpu/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

inline std::int64_t stat_index(const AttentionProblem& p, const Sequence& seq, int query,
                               int head) {
  return (seq.row + query) * p.heads_q + head;
}

inline RowMajor dq_rows(const BackwardPlan& plan, const Sequence& seq, int chunk, int head,
                        int query) {
  const AttentionProblem& p = *plan.problem;
  int dim = round_up(p.dim, kColumnGranule);
  std::int64_t row = (std::int64_t{chunk} * p.heads_q + head) * plan.dq_rows + seq.row + query;
  return {plan.dq_chunks + row * dim, dim};
}

/// delta = rowsum(dout * out) - dlse, and dq starts at 0.
inline void prepare_queries(const BackwardPlan& plan, Task task) {
  const AttentionBackward& p = *plan.problem;
  const Sequence& seq = *task.sequence;
  float a[kMaxDim], b[kMaxDim];
  Range queries = tokens_of(task.tile, kTile.queries, seq.len_q);
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    RowMajor dq = dq_rows(plan, seq, chunk, task.head, queries.begin);
    fill(dq.data, queries.size() * dq.stride, 0.0f);
  }
  for (int i = queries.begin; i < queries.end; ++i) {
    load_row(rows_of(p.out, p.dtype, seq.batch, task.head, seq.q_begin + i).data, p.dtype, a,
             p.dim_v, 1.0f);
    load_row(rows_of(p.dout, p.dtype, seq.batch, task.head, seq.q_begin + i).data, p.dtype, b,
             p.dim_v, 1.0f);
    float lanes[8] = {};  // dim_v is a multiple of 8
    for (int d = 0; d < p.dim_v; d += 8)
      for (int l = 0; l < 8; ++l) lanes[l] += a[d + l] * b[d + l];
    float sum = 0;
    for (float lane : lanes) sum += lane;
    std::int64_t index = stat_index(p, seq, i, task.head);
    p.delta[index] = sum - (p.dlse ? p.dlse[index] : 0.0f);
  }
}

inline void store_dq(const BackwardPlan& plan, Task task) {
  const AttentionBackward& p = *plan.problem;
  const Sequence& seq = *task.sequence;
  Range queries = tokens_of(task.tile, kTile.queries, seq.len_q);
  for (int i = queries.begin; i < queries.end; ++i) {
    float sum[kMaxDim] = {};
    for (int chunk = 0; chunk < plan.chunks; ++chunk) {
      const float* part = dq_rows(plan, seq, chunk, task.head, i).data;
      for (int d = 0; d < p.dim; ++d) sum[d] += part[d];
    }
    store_row(sum, rows_of(p.dq, p.dtype, seq.batch, task.head, seq.q_begin + i).data, p.dtype,
              p.dim, p.scale);
  }
}

/// The scratch of a backward task.
struct BackwardTile {
  float* k_panels;     // [panel][dim][kPanel]
  float* v_panels;     // [panel][dim_v][kPanel]
  RowMajor k;          // [keys][padded dim]
  RowMajor dk, dv;     // [keys][padded dim or dim_v]
  RowMajor q, dout;    // [queries][padded dim or dim_v], q times scale
  RowMajor weights;    // [queries][keys], first the scores
  RowMajor dscores;    // [queries][keys], first dout v^T
  RowMajor cap_slope;  // [queries][keys]

  BackwardTile(const AttentionProblem& p, float* scratch) {
    auto take = [&](std::int64_t rows, std::int64_t columns) {
      RowMajor taken{scratch, columns};
      scratch += rows * columns;
      return taken;
    };
    int dim = round_up(p.dim, kColumnGranule), dim_v = round_up(p.dim_v, kColumnGranule);
    k_panels = take(kTile.keys, p.dim).data;
    v_panels = take(kTile.keys, p.dim_v).data;
    k = take(kTile.keys, dim);
    dk = take(kTile.keys, dim);
    dv = take(kTile.keys, dim_v);
    q = take(kTile.queries, dim);
    dout = take(kTile.queries, dim_v);
    weights = take(kTile.queries, kTile.keys);
    dscores = take(kTile.queries, kTile.keys);
    cap_slope = take(kTile.queries, kTile.keys);
  }
};

inline void load_keys(const AttentionProblem& p, const Sequence& seq, int kv_head, Range keys,
                      const BackwardTile& tile) {
  for (int key = keys.begin; key < keys.end; key += kPanel) {
    int count = imin(kPanel, keys.end - key), at = key - keys.begin;
    auto k = rows_of(p.k, p.dtype, seq.batch, kv_head, seq.k_begin + key);
    auto v = rows_of(p.v, p.dtype, seq.batch, kv_head, seq.k_begin + key);
    load_transposed(k, count, p.dim, tile.k_panels + at * p.dim);
    load_transposed(v, count, p.dim_v, tile.v_panels + at * p.dim_v);
    load_rows(k, count, round_up(count, kColumnGranule), p.dim, 1.0f,
              {tile.k.data + at * tile.k.stride, tile.k.stride});
  }
  const int padded_keys = round_up(keys.size(), kColumnGranule);
  fill(tile.dk.data, padded_keys * tile.dk.stride, 0.0f);
  fill(tile.dv.data, padded_keys * tile.dv.stride, 0.0f);
}

/// Row `r` of the tile: scores and dout v^T become weights and gradients of the scores.
template <class Pattern>
void differentiate_row(const AttentionBackward& p, const Sequence& seq, int head, int query, int r,
                       Range keys, const Scores& scores, const Visibility<Pattern>& visibility,
                       const BackwardTile& tile) {
  float* s = tile.weights.data + r * tile.weights.stride;
  float* ds = tile.dscores.data + r * tile.dscores.stride;
  float* slope = tile.cap_slope.data + r * tile.cap_slope.stride;
  const auto [begin, end] = visibility.keys_of(r / kGroup);
  if (begin == end) return;
  scores.modify(s + begin, end - begin, query, keys.begin + begin, slope + begin);
  visibility.hide(r, s, -kInfinity);
  std::int64_t index = stat_index(p, seq, query, head);
  // A row without a key has weights exp(-inf) = 0.
  float lse = p.lse[index] == -kInfinity ? kInfinity : p.lse[index];
  float delta = p.delta[index];
  for (int j = begin; j < end; j += kWidth) {
    Vec weight = exp(load(s + j) - lse);
    store(s + j, weight);
    store(ds + j, weight * (load(ds + j) - delta));
  }
  visibility.hide(r, ds, 0.0f);  // a hidden key's value may be NaN
  if (p.dbias.data) {
    float* dbias = static_cast<float*>(p.dbias.data) + seq.batch * p.dbias.batch_stride +
                   head * p.dbias.head_stride + query * p.dbias.query_stride + keys.begin;
    for (int j = begin; j < imin(end, keys.size()); ++j) dbias[j] += ds[j];
  }
  if (scores.softcap > 0) {
    for (int j = begin; j < end; j += kWidth) store(ds + j, load(ds + j) * load(slope + j));
    visibility.hide(r, ds, 0.0f);
  }
}

/// Adds what one query tile of one head contributes.
template <class Pattern>
void backward_tile(const BackwardPlan& plan, Task task, int head, int query_tile, int key_tile,
                   const Pattern& pattern, const BackwardTile& tile) {
  const AttentionBackward& p = *plan.problem;
  const Sequence& seq = *task.sequence;
  const Range queries = tokens_of(query_tile, kTile.queries, seq.len_q);
  const Range keys = tokens_of(key_tile, kTile.keys, seq.len_k);
  const int rows = queries.size(), panels = ceil_div(keys.size(), kPanel);
  const Visibility<Pattern> visibility(pattern, query_tile, key_tile, rows, keys.size());
  const Scores scores = Scores::make(p, seq, head);
  int token = seq.q_begin + queries.begin;
  load_rows(rows_of(p.q, p.dtype, seq.batch, head, token), rows, rows, p.dim, p.scale, tile.q);
  load_rows(rows_of(p.dout, p.dtype, seq.batch, head, token), rows, rows, p.dim_v, 1.0f, tile.dout);

  auto from = [](RowMajor x, int row, int column = 0) {
    return RowMajor{x.data + row * x.stride + column, x.stride};
  };
  auto plain = [](RowMajor x) { return StridedA{x.data, x.stride, 1}; };
  auto transposed = [](RowMajor x) { return StridedA{x.data, 1, x.stride}; };

  for (int n = 0; n < panels; ++n) {
    Range r = visibility.queries_of(n, rows);
    int key = n * kPanel, count = visibility.keys_in(n);
    product(r.size(), count, p.dim, plain(from(tile.q, r.begin)),
            {tile.k_panels + key * p.dim, kPanel}, from(tile.weights, r.begin, key), false);
    product(r.size(), count, p.dim_v, plain(from(tile.dout, r.begin)),
            {tile.v_panels + key * p.dim_v, kPanel}, from(tile.dscores, r.begin, key), false);
  }
  for (int r = 0; r < rows; ++r)
    differentiate_row(p, seq, head, queries.begin + r, r, keys, scores, visibility, tile);
  for (int n = 0; n < panels; ++n) {
    Range r = visibility.queries_of(n, rows);
    int key = n * kPanel, count = visibility.keys_in(n);
    product(count, tile.dv.stride, r.size(), transposed(from(tile.weights, r.begin, key)),
            from(tile.dout, r.begin), from(tile.dv, key), true);
    product(count, tile.dk.stride, r.size(), transposed(from(tile.dscores, r.begin, key)),
            from(tile.q, r.begin), from(tile.dk, key), true);
  }
  RowMajor dq = dq_rows(plan, seq, task.tile, head, queries.begin);
  for (int group = 0; group < ceil_div(rows, kGroup); ++group) {
    Range seen = visibility.keys_of(group);
    int r = group * kGroup;
    product(imin(kGroup, rows - r), dq.stride, seen.size(),
            plain(from(tile.dscores, r, seen.begin)), from(tile.k, seen.begin), from(dq, r), true);
  }
}

template <class Pattern>
void backward(const BackwardPlan& plan, Task task, float* scratch) {
  const AttentionBackward& p = *plan.problem;
  const Sequence& seq = *task.sequence;
  const Pattern pattern = Pattern::make(p.pattern, seq.len_q, seq.len_k);
  const BackwardTile tile(p, scratch);
  const int group = p.heads_q / p.heads_kv;
  for (int kt = task.tile; kt < ceil_div(seq.len_k, kTile.keys); kt += plan.chunks) {
    const Range keys = tokens_of(kt, kTile.keys, seq.len_k);
    load_keys(p, seq, task.head, keys, tile);
    const auto walk = pattern.queries_of(kt, kTile);
    for (int head = task.head * group; head < (task.head + 1) * group; ++head)
      for (int n = 0; n < walk.size(); ++n)
        backward_tile(plan, task, head, walk[n], kt, pattern, tile);

    auto dk = rows_of(p.dk, p.dtype, seq.batch, task.head, seq.k_begin + keys.begin);
    auto dv = rows_of(p.dv, p.dtype, seq.batch, task.head, seq.k_begin + keys.begin);
    for (int j = 0; j < keys.size(); ++j) {
      store_row(tile.dk.data + j * tile.dk.stride, dk.row(j), p.dtype, p.dim, 1.0f);
      store_row(tile.dv.data + j * tile.dv.stride, dv.row(j), p.dtype, p.dim_v, 1.0f);
    }
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
