#include "cpu/softmax/sequences.h"

#include <algorithm>

#include "cpu/softmax/grid_cut.h"

namespace tileattn::cpu {
namespace {

/// Offsets of packed sequences are kept within the tokens, and no sequence
/// overlaps the one before.
void cut_rows(const AttentionProblem& p, Cut& cut) {
  int q_end = 0, k_end = 0;
  for (int b = 0; b < p.batch; ++b) {
    Sequence s{};
    s.index = s.batch = b;
    s.len_q = p.len_q;
    s.len_k = p.len_k;
    s.row = std::int64_t{b} * p.len_q;
    if (p.cu_seqlens_q) {
      auto next = [b](const std::int32_t* offsets, int length, int& end, int& begin, int& size) {
        begin = std::clamp(offsets[b], end, length);
        end = std::clamp(offsets[b + 1], begin, length);
        size = end - begin;
      };
      s.batch = 0;
      next(p.cu_seqlens_q, p.len_q, q_end, s.q_begin, s.len_q);
      next(p.cu_seqlens_k, p.len_k, k_end, s.k_begin, s.len_k);
      s.row = s.q_begin;
    }
    s.query_tiles = ceil_div(s.len_q, kTile.queries);
    s.key_tiles = ceil_div(s.len_k, kTile.keys);
    s.panels = ceil_div(s.len_k, kPanel);
    s.dq_row = cut.dq_rows;
    cut.dq_rows += s.len_q;
    cut.sequences.push_back(s);
  }
}

void cut_grids(const AttentionProblem& p, Cut& cut) {
  cut.grid = std::make_unique<const GridCut>(choose_cut(p.neighborhood));
  const auto parts = parts_of(p.neighborhood);
  for (int b = 0; b < p.batch; ++b)
    for (const DilationGroup<3>& part : parts) {
      BoxGrid<3> queries{}, panels{};
      int key_tiles = 1;
      for (int a = 0; a < 3; ++a) {
        queries.length[a] = panels.length[a] = part.length[a];
        queries.box[a] = cut.grid->query_box[a];
        panels.box[a] = cut.grid->panel_box[a];
        key_tiles *= ceil_div(panels.along(a), cut.grid->panels_per_tile[a]);
      }
      Sequence s{};
      s.index = static_cast<int>(cut.sequences.size());
      s.batch = b;
      s.cut = cut.grid.get();
      s.part = part;
      s.len_q = s.len_k = part.length[0] * part.length[1] * part.length[2];
      s.row = std::int64_t{b} * p.len_q;
      s.extra_tiles = ceil_div(p.extra_keys, kTile.keys);
      s.extra_panels = ceil_div(p.extra_keys, kPanel);
      s.query_tiles = queries.count();
      s.key_tiles = s.extra_tiles + key_tiles;
      s.panels = s.extra_panels + panels.count();
      s.dq_row = cut.dq_rows;
      cut.dq_rows += std::int64_t{s.query_tiles} * queries.rows();
      cut.sequences.push_back(s);
    }
}

}  // namespace

Cut cut_into_sequences(const AttentionProblem& problem) {
  Cut cut;
  if (problem.neighborhood.rank > 0) cut_grids(problem, cut);
  else cut_rows(problem, cut);
  std::int64_t packed_keys = 0;
  for (Sequence& s : cut.sequences) {
    s.packed_key = packed_keys;
    packed_keys += s.padded_keys();
  }
  return cut;
}

}  // namespace tileattn::cpu
