// Tokens in a row and the pattern of a head: which tiles meet, and what is visible in them.
// grid_tiles.h answers the same questions for tokens on a grid.
#pragma once

#include "cpu/softmax/sequence_tokens.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Pattern>
class SequenceTiles : public SequenceTokens {
 public:
  using Tokens = SequenceTokens;

  SequenceTiles(const AttentionProblem& problem, const Sequence& sequence, int head)
      : Tokens(problem, sequence),
        pattern_(Pattern::make(problem.pattern,
                               {sequence.index, head, sequence.len_q, sequence.len_k})) {}

  /// The query tiles that see something of a key tile.
  auto queries_of(int key_tile) const { return pattern_.queries_of(key_tile, kTile); }

  /// What a query tile sees.
  class View {
   public:
    View(const SequenceTiles& tiles, const Queries& queries) : tiles_(tiles), queries_(queries) {}

    /// Calls visit(keys, their cover) for the key tiles that it sees something of, in order.
    template <class Visitor>
    void for_each_keys(Visitor visitor) const {
      auto cursor = tiles_.pattern_.keys_of(queries_.tile, kTile);
      for (Visit<int> visit; cursor.next(visit);) visitor(tiles_.keys(visit.tile), visit.cover);
    }
    Cover cover(int group, const Keys& keys, int panel) const {
      return tiles_.pattern_.cover(queries_.tile * kGroupsPerTile + group, keys.packed_panel(panel),
                                   kBlock);
    }
    /// The keys of a panel that row r sees.
    std::uint64_t seen(int r, const Keys& keys, int panel) const {
      return tiles_.pattern_.seen(queries_.tokens.begin + r, keys.tokens.begin + panel * kPanel);
    }

   private:
    const SequenceTiles& tiles_;
    const Queries& queries_;
  };

 private:
  Pattern pattern_;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
