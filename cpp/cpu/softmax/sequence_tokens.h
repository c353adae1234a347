// Tokens in a row, cut into tiles: where the rows of a tile lie. grid_tokens.h answers the same
// questions for tokens on a grid. Which tiles meet is not their matter.
#pragma once

#include "cpu/common/pack.h"
#include "cpu/softmax/plan.h"

namespace tileattn::cpu::TILEATTN_ISA {

class SequenceTokens {
 public:
  static constexpr bool kOnAGrid = false;

  SequenceTokens(const AttentionProblem& problem, const Sequence& sequence)
      : dtype_(problem.dtype), seq_(sequence) {}

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

 private:
  template <class Void>
  auto rows_from(const BasicTensorRef<Void>& x, int head, int token) const {
    return rows_of(x, dtype_, seq_.batch, head, token);
  }

  DType dtype_;
  const Sequence& seq_;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
