// Tokens on a grid and their neighborhoods: the counterpart of sequence_tiles.h.
#pragma once

#include "cpu/softmax/grid_tokens.h"

namespace tileattn::cpu::TILEATTN_ISA {

class GridTiles : public GridTokens {
 public:
  using Tokens = GridTokens;

  GridTiles(const AttentionProblem& problem, const Sequence& sequence, int /*head*/)
      : Tokens(problem, sequence),
        pattern_(Neighborhood<3>::make(problem.neighborhood, sequence.part)) {}

  /// The query tiles that see something of a key tile; extra keys are seen by all.
  auto queries_of(int key_tile) const {
    if (key_tile >= seq_.extra_tiles)
      return BoxCursor(pattern_.queries_of(key_tile - seq_.extra_tiles, {query_grid_, key_grid_}));
    const int* length = part_.length;
    return BoxCursor(query_grid_.touched_by({{{0, length[0]}, {0, length[1]}, {0, length[2]}}}));
  }

  /// What a query tile sees.
  class View {
   public:
    View(const GridTiles& tiles, const Queries& queries) : tiles_(tiles), queries_(queries) {
      for (int a = 0; a < 3; ++a)
        for (int i = 0; i < queries.box.axis[a].size(); ++i)
          windows_[a][i] = tiles.pattern_.axis[a].keys_of(queries.box.axis[a].begin + i);
      for (int group = 0; group * kGroup < queries.rows; ++group) join_windows(group);
    }

    /// The extra keys, then the panels around the tile, as many at a time as fit, so that the
    /// softmax takes few steps. Covers are asked of the blocks.
    template <class Visitor>
    void for_each_keys(Visitor visitor) const {
      for (int tile = 0; tile < tiles_.seq_.extra_tiles; ++tile)
        visitor(tiles_.extra_keys(tile), Cover::kPartial);
      const BoxWalk<3> near =
          tiles_.pattern_.keys_of(queries_.tile, {tiles_.query_grid_, tiles_.panel_grid_});
      for (int n = 0; n < near.size(); n += kPanelsPerTile)
        visitor(tiles_.some_of(near, n), Cover::kPartial);
    }
    Cover cover(int group, const Keys& keys, int panel) const {
      const int count = keys.count(panel);
      // Columns up to the next panel's must be hidden, or be none.
      const int columns = panel + 1 < keys.size ? kPanel : round_up(count, kColumnGranule);
      const bool whole = count == columns;
      if (keys.extra) return whole ? Cover::kFull : Cover::kPartial;
      const Box<3>& box = keys.bits[panel].box;
      if (!keys_of_any_[group].meets(box)) return Cover::kEmpty;
      return whole && keys_of_all_[group].contains(box) ? Cover::kFull : Cover::kPartial;
    }
    std::uint64_t seen(int r, const Keys& keys, int panel) const {
      const BoxBits<3>& bits = keys.bits[panel];
      const auto& at = queries_.at[r];
      return keys.extra
                 ? bits.all()
                 : bits.within({{windows_[0][at[0]], windows_[1][at[1]], windows_[2][at[2]]}});
    }

   private:
    void join_windows(int group) {
      const auto& first = queries_.at[group * kGroup];
      const auto& last = queries_.at[imin((group + 1) * kGroup, queries_.rows) - 1];
      bool wraps = false;  // the rows take in the box's whole length on this axis
      for (int a = 0; a < 3; ++a) {
        const Range low = windows_[a][wraps ? 0 : first[a]];
        const Range high = windows_[a][wraps ? queries_.box.axis[a].size() - 1 : last[a]];
        keys_of_any_[group].axis[a] = {low.begin, high.end};
        keys_of_all_[group].axis[a] = {high.begin, low.end};
        wraps = wraps || first[a] != last[a];
      }
    }

    const GridTiles& tiles_;
    const Queries& queries_;
    Range windows_[3][kTile.queries];     // of each position of the box along an axis
    Box<3> keys_of_any_[kGroupsPerTile];  // what some row of a group sees
    Box<3> keys_of_all_[kGroupsPerTile];  // and what every row sees
  };

 private:
  /// Visits the boxes of a walk.
  class BoxCursor {
   public:
    explicit BoxCursor(const BoxWalk<3>& boxes) : boxes_(boxes) {}
    bool next(Visit<int>& visit) {
      if (next_ == boxes_.size()) return false;
      visit = {boxes_[next_++], Cover::kPartial};
      return true;
    }

   private:
    BoxWalk<3> boxes_;
    int next_ = 0;
  };

  Neighborhood<3> pattern_;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
