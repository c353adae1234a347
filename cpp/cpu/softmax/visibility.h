// Which blocks (kGroup queries x kPanel keys) of a tile a pattern leaves visible,
// so that hidden blocks cost nothing and whole ones no mask.
#pragma once

#include "cpu/common/vec.h"
#include "cpu/softmax/plan.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Of one query tile and one key tile, whose cover is `whole`. Keys are counted in columns: panel
/// p begins at column p * kPanel, however many keys it has.
template <class Tiles>
class Visibility {
 public:
  using Queries = typename Tiles::Queries;
  using Keys = typename Tiles::Keys;
  using View = typename Tiles::View;

  Visibility(const View& view, const Queries& queries, const Keys& keys, Cover whole)
      : view_(view), queries_(queries), keys_(keys) {
    for (int g = 0; g < groups(); ++g)
      for (int p = 0; p < keys.panels(); ++p) {
        cover_[g][p] = whole == Cover::kFull ? Cover::kFull : view.cover(g, keys, p);
        if (cover_[g][p] != Cover::kEmpty) extend(panels_of_[g], p);
      }
  }

  int groups() const { return ceil_div(queries_.size(), kGroup); }

  /// Columns of panel `p` that hold keys, padded to whole vectors.
  int padded(int p) const { return round_up(keys_.count(p), kColumnGranule); }

  /// The columns from the first to the last panel that group `g` sees something of.
  Range columns_of(int g) const {
    const Range panels = panels_of_[g];
    if (panels.size() == 0) return {0, 0};
    return {panels.begin * kPanel, (panels.end - 1) * kPanel + padded(panels.end - 1)};
  }

  /// Calls visit(columns) for the runs of keys in the panels that group `g` sees. The panels of
  /// a run are whole, up to its last, and were packed one after the other.
  template <class Visit>
  void for_each_run_of_keys(int g, Visit visit) const {
    const Range panels = panels_of_[g];
    auto joins_next = [&](int p) {
      return p + 1 < panels.end && cover_[g][p + 1] != Cover::kEmpty && keys_.count(p) == kPanel &&
             keys_.packed_panel(p + 1) == keys_.packed_panel(p) + 1;
    };
    for (int p = panels.begin; p < panels.end; ++p) {
      if (cover_[g][p] == Cover::kEmpty) continue;
      const int begin = p * kPanel;
      while (joins_next(p)) ++p;
      visit(Range{begin, p * kPanel + keys_.count(p)});
    }
  }

  /// Calls visit(rows) for the runs of queries in the groups that see something of panel `p`.
  template <class Visit>
  void for_each_run_of_queries(int p, Visit visit) const {
    for (int g = 0; g < groups(); ++g) {
      if (cover_[g][p] == Cover::kEmpty) continue;
      int begin = g;
      while (g + 1 < groups() && cover_[g + 1][p] != Cover::kEmpty) ++g;
      visit(Range{begin * kGroup, imin((g + 1) * kGroup, queries_.size())});
    }
  }

  /// Writes `value` over what row `row` (of the tile) does not see among columns_of() its
  /// group. row_values[0] belongs to column 0.
  void hide(int row, float* row_values, float value) const {
    int group = row / kGroup;
    for (int p = panels_of_[group].begin; p < panels_of_[group].end; ++p)
      if (cover_[group][p] != Cover::kFull)
        fill_others(view_.seen(row, keys_, p), p + 1 < keys_.panels() ? kPanel : padded(p),
                    row_values + p * kPanel, value);
  }

 private:
  /// Writes `value` over those of s[0, columns) whose bits are not set.
  static void fill_others(std::uint64_t bits, int columns, float* s, float value) {
    BitVec lane;
    for (int i = 0; i < kWidth; ++i) lane[i] = 1u << i;
    const Vec others = broadcast(value);
    for (int j = 0; j < columns; j += kWidth) {
      const BitVec word = static_cast<std::uint32_t>(bits >> j) - BitVec{};
      store(s + j, (word & lane) != 0 ? load(s + j) : others);
    }
  }
  static void extend(Range& range, int index) {
    range = range.size() == 0 ? Range{index, index + 1}
                              : Range{imin(range.begin, index), imax(range.end, index + 1)};
  }

  const View& view_;
  const Queries& queries_;
  const Keys& keys_;
  Range panels_of_[kGroupsPerTile] = {};
  Cover cover_[kGroupsPerTile][kPanelsPerTile] = {};
};

}  // namespace tileattn::cpu::TILEATTN_ISA
