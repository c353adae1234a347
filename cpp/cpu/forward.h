// Forward of one query tile:  scores -> visibility -> weights -> out, lse.
#pragma once

#include "cpu/pack.h"
#include "cpu/scores.h"
#include "cpu/softmax.h"
#include "cpu/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Where the packed keys and values of one (sequence, key head) begin.
struct PackedHead {
  float* k;  // [panel][dim][kPanel]
  float* v;  // [padded_keys][padded dim_v]

  PackedHead(const ForwardPlan& plan, const Sequence& seq, int kv_head) {
    const AttentionProblem& p = *plan.problem;
    std::int64_t first = seq.packed_key * p.heads_kv + std::int64_t{kv_head} * seq.padded_keys();
    k = plan.packed_k + first * p.dim;
    v = plan.packed_v + first * round_up(p.dim_v, kColumnGranule);
  }
};

inline void pack_panel(const ForwardPlan& plan, Task task) {
  const AttentionForward& p = *plan.problem;
  const Sequence& seq = *task.sequence;
  PackedHead packed(plan, seq, task.head);
  int key = task.tile * kPanel, keys = imin(kPanel, seq.len_k - key);
  int dim_v = round_up(p.dim_v, kColumnGranule);
  load_transposed(rows_of(p.k, p.dtype, seq.batch, task.head, seq.k_begin + key), keys, p.dim,
                  packed.k + std::int64_t{key} * p.dim);
  load_rows(rows_of(p.v, p.dtype, seq.batch, task.head, seq.k_begin + key), keys, kPanel, p.dim_v,
            1.0f, {packed.v + std::int64_t{key} * dim_v, dim_v});
}

/// The tile that a forward task works on.
struct ForwardTile {
  int rows;
  RowMajor q;    // [rows][dim], times the score factor
  RowMajor s;    // [rows][kTile.keys], scores, then weights
  RowMajor out;  // [rows][padded dim_v]
};

/// s = q k^T, where something is visible.
template <class Pattern>
void compute_scores(const ForwardTile& tile, const float* k_panels, int dim, int panels,
                    const Visibility<Pattern>& visibility) {
  for (int p = 0; p < panels; ++p) {
    Range rows = visibility.queries_of(p, tile.rows);
    float* k_panel = const_cast<float*>(k_panels) + std::int64_t{p} * kPanel * dim;
    product(rows.size(), kPanel, dim, {tile.q.data + rows.begin * tile.q.stride, tile.q.stride, 1},
            {k_panel, kPanel}, {tile.s.data + rows.begin * tile.s.stride + p * kPanel, tile.s.stride},
            false);
  }
}

/// One group's scores become weights, and its rows of out take in the values.
template <class Pattern>
void absorb_group(const ForwardTile& tile, int group, int first_query, int first_key,
                  RowMajor values, const Scores& scores, const Visibility<Pattern>& visibility,
                  OnlineSoftmax& softmax) {
  Range panels = visibility.panels_of(group);
  if (panels.size() == 0) return;
  int begin = panels.begin * kPanel, keys = panels.size() * kPanel;
  Range rows = {group * kGroup, imin((group + 1) * kGroup, tile.rows)};
  for (int r = rows.begin; r < rows.end; ++r) {
    float* s = tile.s.data + r * tile.s.stride;
    scores.modify(s + begin, keys, first_query + r, first_key + begin, nullptr);
    visibility.hide(r, s, -kInfinity);
    float rescale = softmax.absorb(r, s + begin, keys);
    float* out = tile.out.data + r * tile.out.stride;
    if (rescale != 1.0f)
      for (int d = 0; d < tile.out.stride; d += kWidth) store(out + d, load(out + d) * rescale);
  }
  product(rows.size(), static_cast<int>(tile.out.stride), keys,
          {tile.s.data + rows.begin * tile.s.stride + begin, tile.s.stride, 1},
          {values.data + begin * values.stride, values.stride},
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
void forward(const ForwardPlan& plan, Task task, float* scratch) {
  const AttentionForward& p = *plan.problem;
  const Sequence& seq = *task.sequence;
  const Pattern pattern = Pattern::make(p.pattern, seq.len_q, seq.len_k);
  const Scores scores = Scores::make(p, seq, task.head);
  const PackedHead packed(plan, seq, task.head / (p.heads_q / p.heads_kv));
  const Range queries = tokens_of(task.tile, kTile.queries, seq.len_q);
  const int dim_v = round_up(p.dim_v, kColumnGranule);

  ForwardTile tile;
  tile.rows = queries.size();
  tile.out = {scratch, dim_v};
  tile.s = {scratch + kTile.queries * dim_v, kTile.keys};
  tile.q = {tile.s.data + kTile.queries * kTile.keys, p.dim};
  load_rows(rows_of(p.q, p.dtype, seq.batch, task.head, seq.q_begin + queries.begin), tile.rows,
            tile.rows, p.dim, scores.q_factor(), tile.q);
  fill(tile.out.data, std::int64_t{tile.rows} * dim_v, 0.0f);

  OnlineSoftmax softmax(p.sinks ? p.sinks[task.head] : -kInfinity);
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
