// Backward: a task owns some key tiles of one (sequence, key head), so that dK, dV
// and columns of dbias have one writer; its share of dQ is summed up afterwards.
//   p = exp(s - lse)    dv += p^T dout    ds = p (dout v^T - delta)
// lse and out are taken with their low parts: what rounding them lost would be an error of all of
// a row's weights, or of all its gradients.
//   dk += ds^T q        dq += ds k
#pragma once

#include "cpu/common/hidden.h"
#include "cpu/softmax/operands.h"
#include "cpu/softmax/scores.h"
#include "cpu/softmax/visibility.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// The index in lse and delta of row `r`.
template <class Tokens>
std::int64_t stat_index(const AttentionProblem& p, const Sequence& seq, const Tokens& tokens,
                        const typename Tokens::Queries& queries, int r, int head) {
  return (seq.row + tokens.token(queries, r)) * p.heads_q + head;
}

/// A tile's rows of dq in one chunk.
template <class Tokens>
RowMajor dq_rows(const BackwardPlan& plan, const Tokens& tokens,
                 const typename Tokens::Queries& queries, int chunk, int head) {
  const AttentionProblem& p = *plan.problem;
  const DqChunks& dq = plan.dq;
  int dim = round_up(p.dim, kColumnGranule);
  std::int64_t row = (std::int64_t{chunk} * dq.heads + head - dq.first_head) * dq.rows +
                     tokens.dq_row(queries) - dq.first_row;
  return {dq.data + row * dim, dim};
}

/// delta = rowsum(dout * out) - dlse, and dq starts at 0.
template <class Tokens>
void prepare_queries(const BackwardPlan& plan, Task task) {
  const AttentionBackward& p = *plan.problem;
  const Tokens tokens(p, *task.sequence);
  const auto queries = tokens.queries(task.tile);
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    RowMajor dq = dq_rows(plan, tokens, queries, chunk, task.head);
    fill(dq.data, queries.size() * dq.stride, 0.0f);
  }
  float a[kMaxDim], b[kMaxDim];
  const auto out = tokens.rows(queries, p.out, task.head);
  const auto dout = tokens.rows(queries, p.dout, task.head);
  for (int r = 0; r < queries.size(); ++r) {
    const std::int64_t index = stat_index(p, *task.sequence, tokens, queries, r, task.head);
    load_row(out.row(r), p.dtype, a, p.dim_v, 1.0f);
    if (p.out_low) add_low_parts(a, p.out_low + index * p.dim_v, p.dtype, p.dim_v);
    load_row(dout.row(r), p.dtype, b, p.dim_v, 1.0f);
    float lanes[8] = {};  // dim_v is a multiple of 8
    for (int d = 0; d < p.dim_v; d += 8)
      for (int l = 0; l < 8; ++l) lanes[l] += a[d + l] * b[d + l];
    float sum = 0;
    for (float lane : lanes) sum += lane;
    p.delta[index] = sum - (p.dlse ? p.dlse[index] : 0.0f);
  }
}

template <class Tokens>
void store_dq(const BackwardPlan& plan, Task task) {
  const AttentionBackward& p = *plan.problem;
  const Tokens tokens(p, *task.sequence);
  const auto queries = tokens.queries(task.tile);
  const auto to = tokens.rows(queries, p.dq, task.head);
  const RowWriter writer(p.dtype, result_size(p));
  for (int r = 0; r < queries.size(); ++r) {
    float sum[kMaxDim] = {};
    for (int chunk = 0; chunk < plan.chunks; ++chunk) {
      const float* dq = part(dq_rows(plan, tokens, queries, chunk, task.head), r).data;
      for (int d = 0; d < p.dim; ++d) sum[d] += dq[d];
    }
    writer.write(sum, to.row(r), p.dim, p.scale);
  }
}

/// The scratch of a backward task. Numbers are counted, of which an element may hold several.
template <class Operands>
struct BackwardTile {
  using Element = typename Operands::Element;
  Element* k_panels;            // [panel][dim][kPanel]
  Element* v_panels;            // [panel][dim_v][kPanel]
  Matrix<Element> k;            // B [keys][padded dim]
  RowMajor dk, dv;              // [keys][padded dim or dim_v]
  Matrix<Element> q, dout;      // A [queries][padded dim or dim_v]
  Matrix<Element> b_q, b_dout;  // the same as B
  RowMajor weights;             // [queries][keys], first the scores
  RowMajor dscores;             // [queries][keys], first dout v^T
  RowMajor dscores_by_rows;

  BackwardTile(const AttentionProblem& p, float* scratch) {
    auto take = [&](std::int64_t rows, std::int64_t columns) {
      RowMajor taken{scratch, columns};
      scratch += rows * columns;
      return taken;
    };
    auto take_elements = [&](std::int64_t rows, std::int64_t columns) {
      return Matrix<Element>{reinterpret_cast<Element*>(take(rows, columns).data), columns};
    };
    auto count = elements<Operands>;
    int dim = round_up(p.dim, kColumnGranule), dim_v = round_up(p.dim_v, kColumnGranule);
    k_panels = take_elements(kTile.keys, count(p.dim)).data;
    v_panels = take_elements(kTile.keys, count(p.dim_v)).data;
    k = take_elements(count(kTile.keys), dim);
    dk = take(kTile.keys, dim);
    dv = take(kTile.keys, dim_v);
    q = b_q = take_elements(kTile.queries, count(dim));
    dout = b_dout = take_elements(kTile.queries, count(dim_v));
    weights = take(kTile.queries, kTile.keys);
    dscores = dscores_by_rows = take(kTile.queries, kTile.keys);
    if (Operands::kOneLayout) return;
    b_q = take_elements(count(kTile.queries), dim);
    b_dout = take_elements(count(kTile.queries), dim_v);
    dscores_by_rows = take(kTile.queries, count(kTile.keys));
  }
};

template <class Operands, class Tokens>
void load_keys(const AttentionProblem& p, const Tokens& tokens, const typename Tokens::Keys& keys,
               int kv_head, const BackwardTile<Operands>& tile) {
  for (int panel = 0; panel < keys.panels(); ++panel) {
    int count = keys.count(panel), first = panel * kPanel;
    auto k = tokens.rows(keys, panel, p.k, p.extra_k, kv_head);
    auto v = tokens.rows(keys, panel, p.v, p.extra_v, kv_head);
    Operands::load_panel(k, count, p.dim, tile.k_panels + first * elements<Operands>(p.dim));
    Operands::load_panel(v, count, p.dim_v, tile.v_panels + first * elements<Operands>(p.dim_v));
    Operands::load_b(k, count, p.dim, part(tile.k, elements<Operands>(first)));
  }
  const int rows = keys.panels() * kPanel;
  fill(tile.dk.data, rows * tile.dk.stride, 0.0f);
  fill(tile.dv.data, rows * tile.dv.stride, 0.0f);
}

template <class Operands, class Tokens>
void load_queries(const AttentionBackward& p, const Tokens& tokens,
                  const typename Tokens::Queries& queries, int head,
                  const BackwardTile<Operands>& tile) {
  const auto q = tokens.rows(queries, p.q, head), dout = tokens.rows(queries, p.dout, head);
  Operands::load_a(q, queries.size(), p.dim, p.scale, tile.q);
  Operands::load_a(dout, queries.size(), p.dim_v, 1.0f, tile.dout);
  if constexpr (!Operands::kOneLayout) {
    Operands::load_b(q, queries.size(), p.dim, tile.b_q);
    Operands::load_b(dout, queries.size(), p.dim_v, tile.b_dout);
  }
}

/// Row `r` of the tile: scores and dout v^T become weights and gradients of the scores.
/// `stat` is its index in lse and delta.
template <class Operands, class Tiles>
void differentiate_row(const AttentionBackward& p, const Sequence& seq, int head, int r,
                       std::int64_t stat, const RowScores<Tiles>& scores,
                       const Visibility<Tiles>& visibility, const BackwardTile<Operands>& tile) {
  float* s = part(tile.weights, r).data;
  float* ds = part(tile.dscores, r).data;
  float slope[kTile.keys];  // of the softcap
  const Range columns = visibility.columns_of(r / kGroup);
  if (columns.size() == 0) return;
  scores.modify(s, r, columns, slope);
  visibility.hide(r, s, -kInfinity);
  // A row without a key has weights exp(-inf) = 0.
  const float lse = p.lse[stat] == -kInfinity ? kInfinity : p.lse[stat];
  const float lse_low = p.lse_low ? p.lse_low[stat] : 0.0f, delta = p.delta[stat];
  for (int j = columns.begin; j < columns.end; j += kWidth) {
    Vec score = load(s + j);  // -inf where hidden; lse may be NaN
    Vec weight = score == -kInfinity ? Vec{} : exp((score - lse) - lse_low);
    store(s + j, weight);
    Vec dweight = load(ds + j) - delta;  // that of a hidden key's value may be NaN
    store(ds + j, weight == 0.0f ? Vec{} : weight * dweight);
  }
  if constexpr (!Tiles::kOnAGrid) {
    if (p.dbias.data) {
      int query = scores.queries.tokens.begin + r;
      const Range keys = scores.keys.tokens;
      float* dbias = static_cast<float*>(p.dbias.data) + seq.batch * p.dbias.batch_stride +
                     head * p.dbias.head_stride + query * p.dbias.query_stride + keys.begin;
      for (int j = columns.begin; j < imin(columns.end, keys.size()); ++j) dbias[j] += ds[j];
    }
    if (scores.scores.softcap > 0) {
      for (int j = columns.begin; j < columns.end; j += kWidth) {
        Vec of_capped = load(ds + j);
        store(ds + j, of_capped == 0.0f ? Vec{} : of_capped * load(slope + j));
      }
    }
  }
}

/// Adds what one query tile of one head contributes to a key tile's dk and dv, and to dq.
template <class Operands, class Tiles>
void backward_tile(const BackwardPlan& plan, const Sequence& seq, int chunk, int head,
                   const Tiles& tiles, const typename Tiles::Queries& queries,
                   const typename Tiles::Keys& keys, Cover whole,
                   const BackwardTile<Operands>& tile, bool keys_finite) {
  using Element = typename Operands::Element;
  constexpr auto count = elements<Operands>;
  const AttentionBackward& p = *plan.problem;
  const int rows = queries.size();
  const typename Tiles::View view(tiles, queries);
  const Visibility<Tiles> visibility(view, queries, keys, whole);
  const Scores scores = Scores::make(p, seq, head, Operands::kScalesQ ? 1.0f : p.scale);
  const RowScores<Tiles> row_scores{scores, queries, keys};
  load_queries(p, tiles, queries, head, tile);
  const bool q_finite = all_finite<Element>(tile.b_q, count(rows), tile.dk.stride);
  const bool dout_finite = all_finite<Element>(tile.b_dout, count(rows), tile.dv.stride);

  auto from_row = [](Matrix<Element> a, int row) {
    return StridedA<Element>{part(a, row).data, a.stride, 1};
  };
  for (int n = 0; n < keys.panels(); ++n) {
    const int key = n * kPanel, columns = visibility.padded(n);
    visibility.for_each_run_of_queries(n, [&](Range r) {
      product<Element>(r.size(), columns, count(p.dim), from_row(tile.q, r.begin),
                       {tile.k_panels + key * count(p.dim), kPanel},
                       part(tile.weights, r.begin, key), 0.0f);
      product<Element>(r.size(), columns, count(p.dim_v), from_row(tile.dout, r.begin),
                       {tile.v_panels + key * count(p.dim_v), kPanel},
                       part(tile.dscores, r.begin, key), 0.0f);
    });
  }
  for (int group = 0; group < visibility.groups(); ++group) {
    const Range of_group{group * kGroup, imin((group + 1) * kGroup, rows)};
    for (int r = of_group.begin; r < of_group.end; ++r)
      differentiate_row(p, seq, head, r, stat_index(p, seq, tiles, queries, r, head), row_scores,
                        visibility, tile);
    const Range columns = visibility.columns_of(group);
    Operands::pack_gradients(tile.weights, of_group, columns);
    Operands::pack_gradients(tile.dscores, of_group, columns, tile.dscores_by_rows);
  }
  for (int n = 0; n < keys.panels(); ++n) {
    const int key = n * kPanel, columns = keys.count(n);
    visibility.for_each_run_of_queries(n, [&](Range r) {
      visible_product<Element>(dout_finite, columns, tile.dv.stride, count(r.size()),
                               Operands::transposed(tile.weights, r.begin, key),
                               part(tile.b_dout, count(r.begin)), part(tile.dv, key), 1.0f);
      visible_product<Element>(q_finite, columns, tile.dk.stride, count(r.size()),
                               Operands::transposed(tile.dscores, r.begin, key),
                               part(tile.b_q, count(r.begin)), part(tile.dk, key), 1.0f);
    });
  }
  const RowMajor dq = dq_rows(plan, tiles, queries, chunk, head);
  for (int group = 0; group < visibility.groups(); ++group) {
    const int r = group * kGroup;
    visibility.for_each_run_of_keys(group, [&](Range seen) {
      visible_product<Element>(keys_finite, imin(kGroup, rows - r), dq.stride, count(seen.size()),
                               Operands::by_rows(tile.dscores_by_rows, r, seen.begin),
                               part(tile.k, count(seen.begin)), part(dq, r), 1.0f);
    });
  }
}

/// dk and dv of one key tile, from all queries of `count` sequences.
template <class Operands, class Tiles>
void backward_keys(const BackwardPlan& plan, const Sequence* sequences, int count, int kv_head,
                   int chunk, int key_tile, float* scratch) {
  const AttentionBackward& p = *plan.problem;
  const BackwardTile<Operands> tile(p, scratch);
  const int group = p.heads_q / p.heads_kv;
  const typename Tiles::Tokens first(p, *sequences);
  const auto keys = first.keys(key_tile);
  load_keys(p, first, keys, kv_head, tile);
  bool keys_finite = true;
  for (int panel = 0; panel < keys.panels(); ++panel)
    keys_finite = keys_finite && all_finite<typename Operands::Element>(
                                     part(tile.k, elements<Operands>(panel * kPanel)),
                                     elements<Operands>(keys.count(panel)), tile.dk.stride);
  for (int n = 0; n < count; ++n) {
    const Sequence& seq = sequences[n];
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const Tiles tiles(p, seq, head);
      auto cursor = tiles.queries_of(key_tile);
      for (Visit<int> visit; cursor.next(visit);)
        backward_tile(plan, seq, chunk, head, tiles, tiles.queries(visit.tile), keys, visit.cover,
                      tile, keys_finite);
    }
  }
  const RowWriter writer(p.dtype, result_size(p));
  for (int panel = 0; panel < keys.panels(); ++panel) {
    auto dk = first.rows(keys, panel, p.dk, p.dextra_k, kv_head);
    auto dv = first.rows(keys, panel, p.dv, p.dextra_v, kv_head);
    for (int j = 0; j < keys.count(panel); ++j) {
      writer.write(part(tile.dk, panel * kPanel + j).data, dk.row(j), p.dim,
                   Operands::kScalesQ ? 1.0f : p.scale);
      writer.write(part(tile.dv, panel * kPanel + j).data, dv.row(j), p.dim_v, 1.0f);
    }
  }
}

template <class Operands, class Tiles>
void backward(const BackwardPlan& plan, Task task, float* scratch) {
  const Sequence& seq = *task.sequence;
  for (int kt = seq.extra_tiles + task.tile; kt < seq.key_tiles; kt += plan.chunks)
    backward_keys<Operands, Tiles>(plan, &seq, 1, task.head, task.tile, kt, scratch);
}

template <class Operands, class Tiles>
void backward_head(const BackwardPlan& plan, Task task, float* scratch) {
  const Sequence& seq = *task.sequence;
  const AttentionBackward& p = *plan.problem;
  const int group = p.heads_q / p.heads_kv;
  BackwardPlan own = plan;
  own.dq.data = scratch + backward_scratch(p);
  own.dq.first_head = task.head * group;
  own.dq.first_row = seq.dq_row;
  auto for_each_tile = [&](auto work) {
    for (int head = task.head * group; head < (task.head + 1) * group; ++head)
      for (int tile = 0; tile < seq.query_tiles; ++tile) work(own, Task{&seq, head, tile});
  };
  for_each_tile(prepare_queries<typename Tiles::Tokens>);
  backward<Operands, Tiles>(own, {&seq, task.head, 0}, scratch);
  for_each_tile(store_dq<typename Tiles::Tokens>);
}

/// Every part of a batch entry's grid sees its extra keys.
template <class Operands, class Tiles>
void backward_extra(const BackwardPlan& plan, Task task, float* scratch) {
  for (int kt = 0; kt < task.sequence->extra_tiles; ++kt)
    backward_keys<Operands, Tiles>(plan, task.sequence, plan.parts, task.head, 0, kt, scratch);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
