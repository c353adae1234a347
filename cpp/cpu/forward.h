// Forward of one query tile:  scores -> visibility -> weights -> out, lse.
#pragma once

#include "cpu/pack.h"
#include "cpu/scores.h"
#include "cpu/softmax.h"
#include "cpu/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Tiles>
void pack_panel(const AttentionForward& p, const Tiles& tiles, int kv_head, int panel,
                PackedHead packed) {
  const auto keys = tiles.panel(panel);
  const int count = keys.count(0), dim_v = round_up(p.dim_v, kColumnGranule);
  const std::int64_t first = std::int64_t{panel} * kPanel;
  load_transposed(tiles.rows(keys, 0, p.k, p.extra_k, kv_head), count, p.dim,
                  packed.k + first * p.dim);
  load_rows(tiles.rows(keys, 0, p.v, p.extra_v, kv_head), 0, count, count, p.dim_v, 1.0f,
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
                    const typename Tiles::Keys& keys, const Visibility<Tiles>& visibility,
                    Prefetches* ahead) {
  for (int p = 0; p < keys.panels(); ++p) {
    const float* k_panel = packed_k + std::int64_t{keys.packed_panel(p)} * kPanel * dim;
    visibility.for_each_run_of_queries(p, [&](Range rows) {
      product(rows.size(), visibility.padded(p), dim,
              {part(tile.q, rows.begin).data, tile.q.stride, 1}, {k_panel, kPanel},
              part(tile.s, rows.begin, p * kPanel), 0.0f, ahead);
    });
  }
}

/// The scores of the group's rows become weights, and out takes in the values; the first ones
/// begin it.
template <class Tiles>
void absorb_group(const ForwardTile& tile, int group, Range rows, const float* packed_v,
                  const Visibility<Tiles>& visibility, OnlineSoftmax& softmax,
                  const RowScores<Tiles>& scores, bool& is_first, Prefetches* ahead) {
  const Range columns = visibility.columns_of(group);
  if (columns.size() == 0) return;
  for (int r = rows.begin; r < rows.end; ++r) {
    float* s = part(tile.s, r).data;
    scores.modify(s, r, columns, nullptr);
    visibility.hide(r, s, -kInfinity);
    float rescale = softmax.absorb(r, s + columns.begin, columns.size());
    float* out = part(tile.out, r).data;
    if (rescale != 1.0f && !is_first)
      for (int d = 0; d < tile.out.stride; d += kWidth) store(out + d, load(out + d) * rescale);
  }
  visibility.for_each_run_of_keys(group, [&](Range keys) {
    const std::int64_t first = std::int64_t{scores.keys.packed_panel(keys.begin / kPanel)} * kPanel;
    product(rows.size(), static_cast<int>(tile.out.stride), keys.size(),
            {part(tile.s, rows.begin, keys.begin).data, tile.s.stride, 1},
            {packed_v + first * tile.out.stride, tile.out.stride}, part(tile.out, rows.begin),
            is_first ? 0.0f : 1.0f, ahead);
    is_first = false;
  });
}

/// Epilogue: out and lse leave the loop.
template <class Tiles>
void store_forward(const AttentionForward& p, const Sequence& seq, int head, const Tiles& tiles,
                   const typename Tiles::Queries& queries, const ForwardTile& tile,
                   const OnlineSoftmax& softmax) {
  const RowWriter writer(p);
  auto out = tiles.rows(queries, p.out, head);
  for (int r = 0; r < queries.size(); ++r) {
    writer.write(part(tile.out, r).data, out.row(r), p.dim_v, softmax.inverse_sum(r));
    p.lse[(seq.row + tiles.token(queries, r)) * p.heads_q + head] = softmax.lse(r);
  }
}

template <class Tiles>
void forward_tile(const AttentionForward& p, const Sequence& seq, int head, const Tiles& tiles,
                  const typename Tiles::Queries& queries, PackedHead packed, float* scratch,
                  Prefetches* ahead) {
  const Scores scores = Scores::make(p, seq, head);
  const int rows = queries.size(), dim_v = round_up(p.dim_v, kColumnGranule);

  ForwardTile tile;
  tile.out = {scratch, dim_v};
  tile.s = {scratch + kTile.queries * dim_v, kTile.keys};
  tile.q = {tile.s.data + kTile.queries * kTile.keys, p.dim};
  load_rows(tiles.rows(queries, p.q, head), 0, rows, rows, p.dim, p.scale, tile.q);

  bool is_first[kGroupsPerTile];
  for (bool& first : is_first) first = true;
  OnlineSoftmax softmax(rows, p.sinks ? p.sinks[head] : -kInfinity);
  const auto walk = tiles.keys_of(queries.tile);
  for (int n = 0; n < walk.size(); ++n) {
    const auto keys = tiles.visited(walk, n);
    const Visibility<Tiles> visibility(tiles, queries, keys);
    const RowScores<Tiles> row_scores{scores, queries, keys};
    compute_scores(tile, packed.k, p.dim, keys, visibility, ahead);
    for (int group = 0; group < visibility.groups(); ++group)
      absorb_group(tile, group, {group * kGroup, imin((group + 1) * kGroup, rows)}, packed.v,
                   visibility, softmax, row_scores, is_first[group], ahead);
  }
  for (int group = 0; group * kGroup < rows; ++group)
    if (is_first[group])  // these rows see no key
      fill(part(tile.out, group * kGroup).data, kGroup * dim_v, 0.0f);
  store_forward(p, seq, head, tiles, queries, tile, softmax);
}

template <class Tiles>
void pack_panel(const AttentionForward& p, Task task, PackedHead packed) {
  pack_panel(p, Tiles(p, *task.sequence), task.head, task.tile, packed);
}

template <class Tiles>
void forward(const AttentionForward& p, Task task, PackedHead packed, float* scratch) {
  const Tiles tiles(p, *task.sequence);
  forward_tile(p, *task.sequence, task.head, tiles, tiles.queries(task.tile), packed, scratch,
               nullptr);
}

template <class Tiles>
void ask_for_queries(const AttentionForward& p, const Tiles& tiles,
                     const typename Tiles::Queries& queries, int head, Prefetches& ahead) {
  ahead.ask(tiles.rows(queries, p.q, head), queries.size(), p.dim);
}

template <class Tiles>
void ask_for_panel(const AttentionForward& p, const Tiles& tiles, int kv_head, int panel,
                   Prefetches& ahead) {
  const auto keys = tiles.panel(panel);
  ahead.ask(tiles.rows(keys, 0, p.k, p.extra_k, kv_head), keys.count(0), p.dim);
  ahead.ask(tiles.rows(keys, 0, p.v, p.extra_v, kv_head), keys.count(0), p.dim_v);
}

/// A task packs the keys and values of a key head for itself and walks all its queries. On the
/// way it asks for the rows that the next one begins with.
template <class Tiles>
void forward_head(const AttentionForward& p, Task task, Task next, PackedHead packed,
                  float* scratch) {
  const Sequence &seq = *task.sequence, &next_seq = *next.sequence;
  if (seq.len_q == 0) return;
  const Tiles tiles(p, seq), next_tiles(p, next_seq);
  for (int panel = 0; panel < seq.panels; ++panel) pack_panel(p, tiles, task.head, panel, packed);

  const int group = p.heads_q / p.heads_kv, first_head = task.head * group;
  const std::int64_t steps = std::int64_t{seq.query_tiles} * group;
  std::int64_t asked = 0;
  Prefetches ahead;
  auto queries = tiles.queries(0);
  for (int tile = 0; tile < seq.query_tiles; ++tile) {
    const bool is_last = tile + 1 == seq.query_tiles;
    const auto next_queries = is_last ? queries : tiles.queries(tile + 1);
    for (int h = 0; h < group; ++h) {
      for (; asked * steps < (std::int64_t{tile} * group + h + 1) * next_seq.panels; ++asked)
        ask_for_panel(p, next_tiles, next.head, static_cast<int>(asked), ahead);
      if (h + 1 < group) ask_for_queries(p, tiles, queries, first_head + h + 1, ahead);
      else if (!is_last) ask_for_queries(p, tiles, next_queries, first_head, ahead);
      else if (next_seq.len_q > 0)
        ask_for_queries(p, next_tiles, next_tiles.queries(0), next.head * group, ahead);
      forward_tile(p, seq, first_head + h, tiles, queries, packed, scratch, &ahead);
    }
    queries = next_queries;
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
