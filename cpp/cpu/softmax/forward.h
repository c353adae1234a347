// Forward of one query tile:  scores -> visibility -> weights -> out, lse.
#pragma once

#include "cpu/common/hidden.h"
#include "cpu/softmax/operands.h"
#include "cpu/softmax/results.h"
#include "cpu/softmax/scores.h"
#include "cpu/softmax/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// A PackedHead's keys and values: panels [padded_keys / kPanel][dim][kPanel] and
/// B [padded_keys][padded dim_v], numbers counted.
template <class Operands>
struct PackedKeys {
  using Element = typename Operands::Element;
  Element *k, *v;
  int dim, dim_v;  // the latter padded
  PackedKeys(const AttentionForward& p, PackedHead packed)
      : k(reinterpret_cast<Element*>(packed.k)),
        v(reinterpret_cast<Element*>(packed.v)),
        dim(elements<Operands>(p.dim)),
        dim_v(round_up(p.dim_v, kColumnGranule)) {}

  Element* k_panel(int panel) const { return k + std::int64_t{panel} * kPanel * dim; }
  Matrix<Element> v_panel(int panel) const {
    return {v + std::int64_t{panel} * elements<Operands>(kPanel) * dim_v, dim_v};
  }
};

template <class Operands, class Tokens>
void pack_panel(const AttentionForward& p, const Tokens& tokens, int kv_head, int panel,
                const PackedKeys<Operands>& packed) {
  const auto keys = tokens.panel(panel);
  Operands::load_panel(tokens.rows(keys, 0, p.k, p.extra_k, kv_head), keys.count(0), p.dim,
                       packed.k_panel(panel));
  Operands::load_b(tokens.rows(keys, 0, p.v, p.extra_v, kv_head), keys.count(0), p.dim_v,
                   packed.v_panel(panel));
}

/// The tile that a forward task works on.
template <class Operands>
struct ForwardTile {
  Matrix<typename Operands::Element> q;  // A [rows][dim]
  RowMajor s;                            // [rows][kTile.keys], scores, then weights
  RowMajor out;                          // [rows][padded dim_v]
};

/// s = q k^T, where something is visible.
template <class Operands, class Tiles>
void compute_scores(const ForwardTile<Operands>& tile, const PackedKeys<Operands>& packed,
                    const typename Tiles::Keys& keys, const Visibility<Tiles>& visibility,
                    Prefetches* ahead) {
  for (int p = 0; p < keys.panels(); ++p)
    visibility.for_each_run_of_queries(p, [&](Range rows) {
      product<typename Operands::Element>(rows.size(), visibility.padded(p), packed.dim,
                                          {part(tile.q, rows.begin).data, tile.q.stride, 1},
                                          {packed.k_panel(keys.packed_panel(p)), kPanel},
                                          part(tile.s, rows.begin, p * kPanel), 0.0f, ahead);
    });
}

/// The scores of the group's rows become weights, and out takes in the values; the first ones
/// begin it. `finite`: whether all values are.
template <class Operands, class Tiles>
void absorb_group(const ForwardTile<Operands>& tile, int group, Range rows,
                  const PackedKeys<Operands>& packed, const Visibility<Tiles>& visibility,
                  OnlineSoftmax& softmax, const RowScores<Tiles>& scores, bool finite,
                  bool& is_first, Prefetches* ahead) {
  const Range columns = visibility.columns_of(group);
  if (columns.size() == 0) return;
  for (int r = rows.begin; r < rows.end; ++r) {
    float* s = part(tile.s, r).data;
    scores.modify(s, r, columns, nullptr);
    visibility.hide(r, s, -kInfinity);
  }
  const RowFactors rescale =
      softmax.absorb(rows, part(tile.s, rows.begin, columns.begin), columns.size());
  for (int r = rows.begin; r < rows.end; ++r) {
    Operands::pack_weights(part(tile.s, r).data, columns);
    const float factor = rescale.row[r - rows.begin];
    if (factor == 1.0f || is_first) continue;
    float* out = part(tile.out, r).data;
    for (int d = 0; d < tile.out.stride; d += kWidth) store(out + d, load(out + d) * factor);
  }
  visibility.for_each_run_of_keys(group, [&](Range keys) {
    visible_product<typename Operands::Element>(
        finite, rows.size(), packed.dim_v, elements<Operands>(keys.size()),
        Operands::by_rows(tile.s, rows.begin, keys.begin),
        packed.v_panel(scores.keys.packed_panel(keys.begin / kPanel)), part(tile.out, rows.begin),
        is_first ? 0.0f : 1.0f, ahead);
    is_first = false;
  });
}

template <class Operands, class Tiles>
void store_forward(const AttentionForward& p, const Sequence& seq, int head, const Tiles& tiles,
                   const typename Tiles::Queries& queries, const ForwardTile<Operands>& tile,
                   const OnlineSoftmax& softmax) {
  const ResultWriter results(p);
  auto out = tiles.rows(queries, p.out, head);
  for (int r = 0; r < queries.size(); ++r)
    results.write(softmax, r, part(tile.out, r).data, out.row(r),
                  (seq.row + tiles.token(queries, r)) * p.heads_q + head);
}

template <class Operands, class Tiles>
void forward_tile(const AttentionForward& p, const Sequence& seq, int head, const Tiles& tiles,
                  const typename Tiles::Queries& queries, const PackedKeys<Operands>& packed,
                  float* scratch, Prefetches* ahead, bool finite = true) {
  const Scores scores = Scores::make(p, seq, head, Operands::kScalesQ ? 1.0f : p.scale);
  const int rows = queries.size(), dim_v = packed.dim_v;

  ForwardTile<Operands> tile;
  tile.out = {scratch, dim_v};
  tile.s = {scratch + kTile.queries * dim_v, kTile.keys};
  tile.q = {reinterpret_cast<typename Operands::Element*>(part(tile.s, kTile.queries).data),
            packed.dim};
  Operands::load_a(tiles.rows(queries, p.q, head), rows, p.dim, p.scale, tile.q);

  bool is_first[kGroupsPerTile];
  for (bool& first : is_first) first = true;
  OnlineSoftmax softmax(rows, p.sinks ? p.sinks[head] : -kInfinity);
  const typename Tiles::View view(tiles, queries);
  view.for_each_keys([&](const typename Tiles::Keys& keys, Cover whole) {
    const Visibility<Tiles> visibility(view, queries, keys, whole);
    const RowScores<Tiles> row_scores{scores, queries, keys};
    compute_scores(tile, packed, keys, visibility, ahead);
    for (int group = 0; group < visibility.groups(); ++group)
      absorb_group(tile, group, {group * kGroup, imin((group + 1) * kGroup, rows)}, packed,
                   visibility, softmax, row_scores, finite, is_first[group], ahead);
  });
  for (int group = 0; group * kGroup < rows; ++group)
    if (is_first[group])  // these rows see no key
      fill(part(tile.out, group * kGroup).data, kGroup * dim_v, 0.0f);
  if (finite && !all_finite<float>(tile.out, rows, dim_v))  // perhaps by a hidden value
    return forward_tile(p, seq, head, tiles, queries, packed, scratch, ahead, false);
  store_forward(p, seq, head, tiles, queries, tile, softmax);
}

template <class Operands, class Tokens>
void pack_panel(const AttentionForward& p, Task task, PackedHead packed) {
  pack_panel(p, Tokens(p, *task.sequence), task.head, task.tile, PackedKeys<Operands>(p, packed));
}

template <class Operands, class Tiles>
void forward(const AttentionForward& p, Task task, PackedHead packed, float* scratch) {
  const Tiles tiles(p, *task.sequence, task.head);
  forward_tile(p, *task.sequence, task.head, tiles, tiles.queries(task.tile),
               PackedKeys<Operands>(p, packed), scratch, nullptr);
}

template <class Tokens>
void ask_for_queries(const AttentionForward& p, const Tokens& tokens,
                     const typename Tokens::Queries& queries, int head, Prefetches& ahead) {
  ahead.ask(tokens.rows(queries, p.q, head), queries.size(), p.dim);
}

template <class Tokens>
void ask_for_panel(const AttentionForward& p, const Tokens& tokens, int kv_head, int panel,
                   Prefetches& ahead) {
  const auto keys = tokens.panel(panel);
  ahead.ask(tokens.rows(keys, 0, p.k, p.extra_k, kv_head), keys.count(0), p.dim);
  ahead.ask(tokens.rows(keys, 0, p.v, p.extra_v, kv_head), keys.count(0), p.dim_v);
}

/// A task packs the keys and values of a key head for itself and walks all its queries. On the
/// way it asks for the rows that the next one begins with.
template <class Operands, class Tiles>
void forward_head(const AttentionForward& p, Task task, Task next, PackedHead memory,
                  float* scratch) {
  const PackedKeys<Operands> packed(p, memory);
  const Sequence &seq = *task.sequence, &next_seq = *next.sequence;
  if (seq.len_q == 0) return;
  const typename Tiles::Tokens tokens(p, seq), next_tokens(p, next_seq);
  for (int panel = 0; panel < seq.panels; ++panel) pack_panel(p, tokens, task.head, panel, packed);

  const int group = p.heads_q / p.heads_kv, first_head = task.head * group;
  const std::int64_t steps = std::int64_t{seq.query_tiles} * group;
  std::int64_t asked = 0;
  Prefetches ahead;
  auto queries = tokens.queries(0);
  for (int tile = 0; tile < seq.query_tiles; ++tile) {
    const bool is_last = tile + 1 == seq.query_tiles;
    const auto next_queries = is_last ? queries : tokens.queries(tile + 1);
    for (int h = 0; h < group; ++h) {
      for (; asked * steps < (std::int64_t{tile} * group + h + 1) * next_seq.panels; ++asked)
        ask_for_panel(p, next_tokens, next.head, static_cast<int>(asked), ahead);
      if (h + 1 < group) ask_for_queries(p, tokens, queries, first_head + h + 1, ahead);
      else if (!is_last) ask_for_queries(p, tokens, next_queries, first_head, ahead);
      else if (next_seq.len_q > 0)
        ask_for_queries(p, next_tokens, next_tokens.queries(0), next.head * group, ahead);
      forward_tile(p, seq, first_head + h, Tiles(p, seq, first_head + h), queries, packed, scratch,
                   &ahead);
    }
    queries = next_queries;
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
