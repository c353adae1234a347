// Which blocks (kGroup queries x kPanel keys) of a tile a pattern leaves visible,
// so that hidden blocks cost nothing and whole ones no mask.
#pragma once

#include "cpu/plan.h"
#include "cpu/vec.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Pattern>
class Visibility {
 public:
  /// queries and keys: those in range of the two tiles.
  Visibility(const Pattern& pattern, int query_tile, int key_tile, int queries, int keys)
      : pattern_(pattern),
        first_group_(query_tile * kGroupsPerTile),
        first_panel_(key_tile * kPanelsPerTile),
        padded_keys_(round_up(keys, kColumnGranule)) {
    Cover whole = pattern.cover(query_tile, key_tile, kTile);
    if (whole == Cover::kEmpty) return;
    int groups = ceil_div(queries, kGroup), panels = ceil_div(keys, kPanel);
    for (int g = 0; g < groups; ++g)
      for (int p = 0; p < panels; ++p) {
        cover_[g][p] = whole == Cover::kFull
                           ? Cover::kFull
                           : pattern.cover(first_group_ + g, first_panel_ + p, kBlock);
        if (cover_[g][p] == Cover::kEmpty) continue;
        extend(panels_of_[g], p);
        extend(groups_of_[p], g);
      }
    // Whoever reads a panel's groups must find each of them visiting the panel.
    for (int p = 0; p < panels; ++p)
      for (int g = groups_of_[p].begin; g < groups_of_[p].end; ++g) extend(panels_of_[g], p);
  }

  /// The keys, counted from the tile's first, from the first to the last panel that group
  /// `g` sees something of; padded to whole vectors.
  Range keys_of(int g) const {
    return {panels_of_[g].begin * kPanel, imin(panels_of_[g].end * kPanel, padded_keys_)};
  }
  /// Keys in panel `p`, padded likewise.
  int keys_in(int p) const { return imin(kPanel, padded_keys_ - p * kPanel); }
  /// The queries, counted from the tile's first, from the first to the last group that sees
  /// something of panel `p`.
  Range queries_of(int p, int queries) const {
    return {groups_of_[p].begin * kGroup, imin(groups_of_[p].end * kGroup, queries)};
  }

  /// Writes `value` over the hidden elements of row `row` (of the tile), in the
  /// panels that the row's group visits. row_values[0] belongs to the tile's first key.
  void hide(int row, float* row_values, float value) const {
    int group = row / kGroup;
    for (int p = panels_of_[group].begin; p < panels_of_[group].end; ++p) {
      if (cover_[group][p] == Cover::kFull) continue;
      const Pattern pattern = pattern_;
      int query = first_group_ * kGroup + row, key = (first_panel_ + p) * kPanel;
      float* values = row_values + p * kPanel;
      for (int j = 0; j < keys_in(p); ++j)
        values[j] = pattern.visible(query, key + j) ? values[j] : value;
    }
  }

 private:
  static void extend(Range& range, int index) {
    range = range.size() == 0 ? Range{index, index + 1}
                              : Range{imin(range.begin, index), imax(range.end, index + 1)};
  }

  Pattern pattern_;
  int first_group_, first_panel_, padded_keys_;
  Range panels_of_[kGroupsPerTile] = {};
  Range groups_of_[kPanelsPerTile] = {};
  Cover cover_[kGroupsPerTile][kPanelsPerTile] = {};
};

}  // namespace tileattn::cpu::TILEATTN_ISA
