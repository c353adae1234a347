// Forward of one query tile:  scores -> visibility -> weights -> out, lse.
#pragma once

#include "cpu/pack.h"
#include "cpu/scores.h"
#include "cpu/softmax.h"
#include "cpu/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Tiles>
void pack_panel(const AttentionForward& p, Task task, PackedHead packed) {
  const Tiles tiles(p, *task.sequence);
  const auto keys = tiles.panel(task.tile);
  const int count = keys.count(0), dim_v = round_up(p.dim_v, kColumnGranule);
  const std::int64_t first = std::int64_t{task.tile} * kPanel;
  load_transposed(tiles.rows(keys, 0, p.k, p.extra_k, task.head), count, p.dim,
                  packed.k + first * p.dim);
  load_rows(tiles.rows(keys, 0, p.v, p.extra_v, task.head), 0, count, count, p.dim_v, 1.0f,
            {packed.v + first * dim_v, dim_v});
}

/// The tile that a forward task works on.
struct ForwardTile {
  RowMajor q;    // [rows][dim], times scale
  RowMajor s;    // [rows][kTile.keys], scores, then weights
  RowMajor out;  // [rows][padded dim_v]
};

/// s = q k^T, where something is visible.
template <class Tiles>
void compute_scores(const ForwardTile& tile, const float* packed_k, int dim,
                    const typename Tiles::Keys& keys, const Visibility<Tiles>& visibility) {
  for (int p = 0; p < keys.panels(); ++p) {
    const float* k_panel = packed_k + std::int64_t{keys.packed_panel(p)} * kPanel * dim;
    visibility.for_each_run_of_queries(p, [&](Range rows) {
      product(rows.size(), visibility.padded(p), dim,
              {part(tile.q, rows.begin).data, tile.q.stride, 1}, {k_panel, kPanel},
              part(tile.s, rows.begin, p * kPanel), 0.0f);
    });
  }
}

/// The scores of the group's rows become weights, and out takes in the values.
template <class Tiles>
void absorb_group(const ForwardTile& tile, int group, Range rows, const float* packed_v,
                  const Visibility<Tiles>& visibility, OnlineSoftmax& softmax,
                  const RowScores<Tiles>& scores) {
  const Range columns = visibility.columns_of(group);
  if (columns.size() == 0) return;
  for (int r = rows.begin; r < rows.end; ++r) {
    float* s = part(tile.s, r).data;
    scores.modify(s, r, columns, nullptr);
    visibility.hide(r, s, -kInfinity);
    float rescale = softmax.absorb(r, s + columns.begin, columns.size());
    float* out = part(tile.out, r).data;
    if (rescale != 1.0f)
      for (int d = 0; d < tile.out.stride; d += kWidth) store(out + d, load(out + d) * rescale);
  }
  visibility.for_each_run_of_keys(group, [&](Range keys) {
    const std::int64_t first = std::int64_t{scores.keys.packed_panel(keys.begin / kPanel)} * kPanel;
    product(rows.size(), static_cast<int>(tile.out.stride), keys.size(),
            {part(tile.s, rows.begin, keys.begin).data, tile.s.stride, 1},
            {packed_v + first * tile.out.stride, tile.out.stride}, part(tile.out, rows.begin),
            1.0f);
  });
}

/// Epilogue: out and lse leave the loop.
template <class Tiles>
void store_forward(const AttentionForward& p, Task task, const Tiles& tiles,
                   const typename Tiles::Queries& queries, const ForwardTile& tile,
                   const OnlineSoftmax& softmax) {
  auto out = tiles.rows(queries, p.out, task.head);
  for (int r = 0; r < queries.size(); ++r) {
    store_row(part(tile.out, r).data, out.row(r), p.dtype, p.dim_v, softmax.inverse_sum(r));
    p.lse[(task.sequence->row + tiles.token(queries, r)) * p.heads_q + task.head] = softmax.lse(r);
  }
}

template <class Tiles>
void forward(const AttentionForward& p, Task task, PackedHead packed, float* scratch) {
  const Tiles tiles(p, *task.sequence);
  const auto queries = tiles.queries(task.tile);
  const Scores scores = Scores::make(p, *task.sequence, task.head);
  const int rows = queries.size(), dim_v = round_up(p.dim_v, kColumnGranule);

  ForwardTile tile;
  tile.out = {scratch, dim_v};
  tile.s = {scratch + kTile.queries * dim_v, kTile.keys};
  tile.q = {tile.s.data + kTile.queries * kTile.keys, p.dim};
  load_rows(tiles.rows(queries, p.q, task.head), 0, rows, rows, p.dim, p.scale, tile.q);
  fill(tile.out.data, std::int64_t{rows} * dim_v, 0.0f);

  OnlineSoftmax softmax(rows, p.sinks ? p.sinks[task.head] : -kInfinity);
  const auto walk = tiles.keys_of(task.tile);
  for (int n = 0; n < walk.size(); ++n) {
    const auto keys = tiles.visited(walk, n);
    const Visibility<Tiles> visibility(tiles, queries, keys);
    compute_scores(tile, packed.k, p.dim, keys, visibility);
    for (int group = 0; group < visibility.groups(); ++group)
      absorb_group(tile, group, {group * kGroup, imin((group + 1) * kGroup, rows)}, packed.v,
                   visibility, softmax, RowScores<Tiles>{scores, queries, keys});
  }
  store_forward(p, task, tiles, queries, tile, softmax);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
