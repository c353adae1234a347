// A pattern of tokens in a row, cut into tiles: what the loops of forward.h and backward.h
// ask of it. grid_tiles.h answers the same questions for tokens on a grid.
#pragma once

#include "cpu/common/pack.h"
#include "cpu/softmax/plan.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Pattern>
class TilesInARow {
 public:
  static constexpr bool kOnAGrid = false;

  TilesInARow(const AttentionProblem& problem, const Sequence& sequence)
      : pattern_(Pattern::make(problem.pattern, sequence.len_q, sequence.len_k)),
        dtype_(problem.dtype),
        seq_(sequence) {}

  /// A query tile: up to kTile.queries rows.
  struct Queries {
    int tile;
    Range tokens;
    int size() const { return tokens.size(); }
  };
  Queries queries(int tile) const { return {tile, tokens_of(tile, kTile.queries, seq_.len_q)}; }
  /// The number of row r's token in its sequence.
  std::int64_t token(const Queries& queries, int r) const { return queries.tokens.begin + r; }
  /// The first row of the tile in a chunk of dq.
  std::int64_t dq_row(const Queries& queries) const { return seq_.dq_row + queries.tokens.begin; }

  /// A key tile: up to kPanelsPerTile panels of up to kPanel keys.
  struct Keys {
    int tile;
    Range tokens;
    int panels() const { return ceil_div(tokens.size(), kPanel); }
    int count(int panel) const { return imin(kPanel, tokens.size() - panel * kPanel); }
    /// The panel's number among the packed ones.
    int packed_panel(int panel) const { return tile * kPanelsPerTile + panel; }
  };
  Keys keys(int tile) const { return {tile, tokens_of(tile, kTile.keys, seq_.len_k)}; }

  auto keys_of(int query_tile) const { return pattern_.keys_of(query_tile, kTile); }
  auto queries_of(int key_tile) const { return pattern_.queries_of(key_tile, kTile); }
  /// The keys of step n of a walk.
  Keys visited(const typename Pattern::Walk& walk, int n) const { return keys(walk[n]); }

  /// The tokens of panel `packed` alone.
  Keys panel(int packed) const { return {packed, tokens_of(packed, kPanel, seq_.len_k)}; }

  template <class Void>
  auto rows(const Queries& queries, const BasicTensorRef<Void>& x, int head) const {
    return rows_from(x, head, seq_.q_begin + queries.tokens.begin);
  }
  template <class Void>
  auto rows(const Keys& keys, int panel, const BasicTensorRef<Void>& x,
            const BasicTensorRef<Void>& /*extra*/, int head) const {
    return rows_from(x, head, seq_.k_begin + keys.tokens.begin + panel * kPanel);
  }
  Cover cover(const Queries& queries, const Keys& keys) const {
    return pattern_.cover(queries.tile, keys.tile, kTile);
  }
  Cover cover(const Queries& queries, int group, const Keys& keys, int panel) const {
    return pattern_.cover(queries.tile * kGroupsPerTile + group, keys.packed_panel(panel), kBlock);
  }

  /// Writes `value` over the columns of a panel that row r does not see.
  void hide(const Queries& queries, int r, const Keys& keys, int panel, int columns, float* s,
            float value) const {
    const Pattern pattern = pattern_;
    int query = queries.tokens.begin + r, key = keys.tokens.begin + panel * kPanel;
    for (int j = 0; j < columns; ++j) s[j] = pattern.visible(query, key + j) ? s[j] : value;
  }

 private:
  template <class Void>
  auto rows_from(const BasicTensorRef<Void>& x, int head, int token) const {
    return rows_of(x, dtype_, seq_.batch, head, token);
  }

  Pattern pattern_;
  DType dtype_;
  const Sequence& seq_;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
