// Forward of one query tile:  scores -> visibility -> weights -> out, lse.
#pragma once

#include "cpu/pack.h"
#include "cpu/scores.h"
#include "cpu/softmax.h"
#include "cpu/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

inline void pack_panel(const AttentionForward& p, Task task, PackedHead packed) {
  const Sequence& seq = *task.sequence;
  int key = task.tile * kPanel, keys = imin(kPanel, seq.len_k - key);
  int dim_v = round_up(p.dim_v, kColumnGranule);
  load_transposed(rows_of(p.k, p.dtype, seq.batch, task.head, seq.k_begin + key), keys, p.dim,
                  packed.k + std::int64_t{key} * p.dim);
  load_rows(rows_of(p.v, p.dtype, seq.batch, task.head, seq.k_begin + key), keys,
            round_up(keys, kColumnGranule), p.dim_v, 1.0f,
            {packed.v + std::int64_t{key} * dim_v, dim_v});
}

/// The tile that a forward task works on.
struct ForwardTile {
  int rows;
  RowMajor q;    // [rows][dim], times scale
  RowMajor s;    // [rows][kTile.keys], scores, then weights
  RowMajor out;  // [rows][padded dim_v]
};

/// s = q k^T, where something is visible.
template <class Pattern>
void compute_scores(const ForwardTile& tile, float* k_panels, int dim, int panels,
                    const Visibility<Pattern>& visibility) {
  for (int p = 0; p < panels; ++p) {
    Range rows = visibility.queries_of(p, tile.rows);
    float* k_panel = k_panels + std::int64_t{p} * kPanel * dim;
    product(rows.size(), visibility.keys_in(p), dim,
            {tile.q.data + rows.begin * tile.q.stride, tile.q.stride, 1}, {k_panel, kPanel},
            {tile.s.data + rows.begin * tile.s.stride + p * kPanel, tile.s.stride}, false);
  }
}

/// One group's scores become weights, and its rows of out take in the values.
template <class Pattern>
void absorb_group(const ForwardTile& tile, int group, int first_query, int first_key,
                  RowMajor values, const Scores& scores, const Visibility<Pattern>& visibility,
                  OnlineSoftmax& softmax) {
  const Range keys = visibility.keys_of(group);
  if (keys.size() == 0) return;
  Range rows = {group * kGroup, imin((group + 1) * kGroup, tile.rows)};
  for (int r = rows.begin; r < rows.end; ++r) {
    float* s = tile.s.data + r * tile.s.stride;
    scores.modify(s + keys.begin, keys.size(), first_query + r, first_key + keys.begin, nullptr);
    visibility.hide(r, s, -kInfinity);
    float rescale = softmax.absorb(r, s + keys.begin, keys.size());
    float* out = tile.out.data + r * tile.out.stride;
    if (rescale != 1.0f)
      for (int d = 0; d < tile.out.stride; d += kWidth) store(out + d, load(out + d) * rescale);
  }
  product(rows.size(), static_cast<int>(tile.out.stride), keys.size(),
          {tile.s.data + rows.begin * tile.s.stride + keys.begin, tile.s.stride, 1},
          {values.data + keys.begin * values.stride, values.stride},
          {tile.out.data + rows.begin * tile.out.stride, tile.out.stride}, true);
}

/// Epilogue: out and lse leave the loop.
inline void store_forward(const AttentionForward& p, Task task, int first_query,
                          const ForwardTile& tile, const OnlineSoftmax& softmax) {
  const Sequence& seq = *task.sequence;
  auto out = rows_of(p.out, p.dtype, seq.batch, task.head, seq.q_begin + first_query);
  for (int r = 0; r < tile.rows; ++r) {
    store_row(tile.out.data + r * tile.out.stride, out.row(r), p.dtype, p.dim_v,
              softmax.inverse_sum(r));
    p.lse[(seq.row + first_query + r) * p.heads_q + task.head] = softmax.lse(r);
  }
}

template <class Pattern>
void forward(const AttentionForward& p, Task task, PackedHead packed, float* scratch) {
  const Sequence& seq = *task.sequence;
  const Pattern pattern = Pattern::make(p.pattern, seq.len_q, seq.len_k);
  const Scores scores = Scores::make(p, seq, task.head);
  const Range queries = tokens_of(task.tile, kTile.queries, seq.len_q);
  const int dim_v = round_up(p.dim_v, kColumnGranule);

  ForwardTile tile;
  tile.rows = queries.size();
  tile.out = {scratch, dim_v};
  tile.s = {scratch + kTile.queries * dim_v, kTile.keys};
  tile.q = {tile.s.data + kTile.queries * kTile.keys, p.dim};
  load_rows(rows_of(p.q, p.dtype, seq.batch, task.head, seq.q_begin + queries.begin), tile.rows,
            tile.rows, p.dim, p.scale, tile.q);
  fill(tile.out.data, std::int64_t{tile.rows} * dim_v, 0.0f);

  OnlineSoftmax softmax(tile.rows, p.sinks ? p.sinks[task.head] : -kInfinity);
  const auto walk = pattern.keys_of(task.tile, kTile);
  for (int n = 0; n < walk.size(); ++n) {
    const Range keys = tokens_of(walk[n], kTile.keys, seq.len_k);
    const Visibility<Pattern> visibility(pattern, task.tile, walk[n], tile.rows, keys.size());
    compute_scores(tile, packed.k + std::int64_t{keys.begin} * p.dim, p.dim,
                   ceil_div(keys.size(), kPanel), visibility);
    RowMajor values{packed.v + std::int64_t{keys.begin} * dim_v, dim_v};
    for (int group = 0; group < ceil_div(tile.rows, kGroup); ++group)
      absorb_group(tile, group, queries.begin, keys.begin, values, scores, visibility, softmax);
  }
  store_forward(p, task, queries.begin, tile, softmax);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
