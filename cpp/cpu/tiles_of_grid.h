// A dilation group of a grid, cut into tiles that are boxes: the counterpart of
// tiles_in_a_row.h. Grids of one or two axes have first axes of length 1.
#pragma once

#include "cpu/pack.h"
#include "tileattn/pattern/neighborhood.h"

namespace tileattn::cpu::TILEATTN_ISA {

class TilesOfGrid {
 public:
  static constexpr bool kOnAGrid = true;

  TilesOfGrid(const AttentionProblem& problem, const Sequence& sequence)
      : problem_(problem),
        seq_(sequence),
        group_(DilationGroup<3>::make(problem.neighborhood, sequence.group)),
        pattern_(Neighborhood<3>::make(problem.neighborhood, group_)) {
    const GridCut& cut = *sequence.cut;
    for (int a = 0; a < 3; ++a) {
      query_grid_.length[a] = panel_grid_.length[a] = key_grid_.length[a] = group_.length[a];
      query_grid_.box[a] = cut.query_box[a];
      panel_grid_.box[a] = key_grid_.box[a] = cut.panel_box[a];
    }
    key_grid_.box[2] *= cut.panels_per_tile;
    const auto& axis = problem.neighborhood.axis;
    numbers_ = TokenMap<3>::make(
        problem.neighborhood, group_,
        {std::int64_t{axis[1].length} * axis[2].length, std::int64_t{axis[2].length}, 1});
  }

  /// A query tile, and what its queries see.
  struct Queries {
    int tile;
    Box<3> box;
    int rows;
    Box<3> keys[kTile.queries];          // of each row
    Box<3> keys_of_any[kGroupsPerTile];  // of a group: what some row sees, or a little more
    Box<3> keys_of_all[kGroupsPerTile];  // and what every row sees
    int size() const { return rows; }
  };

  Queries queries(int tile) const {
    Queries made;
    made.tile = tile;
    made.box = query_grid_[tile];
    made.rows = made.box.size();
    Range windows[3][kTile.queries];
    for (int a = 0; a < 3; ++a)
      for (int i = 0; i < made.box.axis[a].size(); ++i)
        windows[a][i] = pattern_.axis[a].keys_of(made.box.axis[a].begin + i);
    int row = 0;
    for (int x = 0; x < made.box.axis[0].size(); ++x)
      for (int y = 0; y < made.box.axis[1].size(); ++y)
        for (int z = 0; z < made.box.axis[2].size(); ++z, ++row) {
          const Box<3> keys = {{windows[0][x], windows[1][y], windows[2][z]}};
          made.keys[row] = keys;
          Box<3>&any = made.keys_of_any[row / kGroup], &all = made.keys_of_all[row / kGroup];
          for (int a = 0; a < 3; ++a) {
            bool first = row % kGroup == 0;
            any.axis[a] = first ? keys.axis[a] : joined(any.axis[a], keys.axis[a]);
            all.axis[a] = first ? keys.axis[a] : common(all.axis[a], keys.axis[a]);
          }
        }
    return made;
  }
  std::int64_t token(const Queries& queries, int r) const { return numbers_(queries.box[r]); }
  std::int64_t dq_row(const Queries& queries) const {
    return seq_.dq_row + std::int64_t{queries.tile} * query_grid_.rows();
  }

  /// A key tile: panels along the last axis, or extra keys, which every query sees.
  struct Keys {
    int tile;
    int first;  // its first panel
    int size;   // panels
    bool extra;
    BoxBits<3> bits[kPanelsPerTile];  // of each panel
    int first_panel() const { return first; }
    int panels() const { return size; }
    int count(int panel) const { return bits[panel].box.size(); }
  };

  Keys keys(int tile) const {
    Keys made;
    made.tile = tile;
    made.extra = tile < seq_.extra_tiles;
    Box<3> rest;
    if (made.extra) {
      rest = {{{0, 1}, {0, 1}, tokens_of(tile, kTile.keys, problem_.extra_keys)}};
      made.first = tile * kPanelsPerTile;
    } else {
      const int own = tile - seq_.extra_tiles, along = key_grid_.along(2);
      rest = key_grid_[own];
      made.first = seq_.extra_panels + own / along * panel_grid_.along(2) +
                   own % along * seq_.cut->panels_per_tile;
    }
    const int width = made.extra ? kPanel : panel_grid_.box[2];
    Range& last = rest.axis[2];
    for (made.size = 0; last.size() > 0; ++made.size, last.begin += width) {
      Box<3> panel = rest;
      panel.axis[2].end = imin(last.begin + width, last.end);
      made.bits[made.size] = BoxBits<3>::make(panel);
    }
    return made;
  }

  /// Tiles of the extra keys, then those around a query tile.
  struct KeyWalk {
    int extra;
    BoxWalk<3> near;
    int size() const { return extra + near.size(); }
    int operator[](int n) const { return n < extra ? n : extra + near[n - extra]; }
  };
  KeyWalk keys_of(int query_tile) const {
    return {seq_.extra_tiles, pattern_.keys_of(query_tile, {query_grid_, key_grid_})};
  }
  BoxWalk<3> queries_of(int key_tile) const {
    if (key_tile >= seq_.extra_tiles)
      return pattern_.queries_of(key_tile - seq_.extra_tiles, {query_grid_, key_grid_});
    const int* length = group_.length;
    return query_grid_.touched_by({{{0, length[0]}, {0, length[1]}, {0, length[2]}}});
  }

  template <class Void>
  auto rows(const Queries& queries, const BasicTensorRef<Void>& x, int head) const {
    return rows_of_box(queries.box, x, head);
  }
  template <class Void>
  auto rows(const Keys& keys, int panel, const BasicTensorRef<Void>& x,
            const BasicTensorRef<Void>& extra, int head) const {
    const Box<3>& box = keys.bits[panel].box;
    if (!keys.extra) return rows_of_box(box, x, head);
    return rows_at(box, extra, head, {0, {0, 0, extra.token_stride}});
  }
  Keys tile_of_panel(int panel, int& panel_in_tile) const {
    if (panel < seq_.extra_panels) {
      panel_in_tile = panel % kPanelsPerTile;
      return keys(panel / kPanelsPerTile);
    }
    const int own = panel - seq_.extra_panels, along = panel_grid_.along(2);
    const int column = own % along, per_tile = seq_.cut->panels_per_tile;
    panel_in_tile = column % per_tile;
    return keys(seq_.extra_tiles + own / along * key_grid_.along(2) + column / per_tile);
  }

  Cover cover(const Queries&, const Keys&) const { return Cover::kPartial; }  // ask the blocks

  Cover cover(const Queries& queries, int group, const Keys& keys, int panel) const {
    const int count = keys.count(panel);
    // Columns up to the next panel's must be hidden, or be none.
    const int columns = panel + 1 < keys.size ? kPanel : round_up(count, kColumnGranule);
    const bool whole = count == columns;
    if (keys.extra) return whole ? Cover::kFull : Cover::kPartial;
    const Box<3>& box = keys.bits[panel].box;
    if (!queries.keys_of_any[group].meets(box)) return Cover::kEmpty;
    return whole && queries.keys_of_all[group].contains(box) ? Cover::kFull : Cover::kPartial;
  }

  void hide(const Queries& queries, int r, const Keys& keys, int panel, int columns, float* s,
            float value) const {
    const BoxBits<3>& bits = keys.bits[panel];
    const std::uint64_t seen = keys.extra ? bits.all() : bits.within(queries.keys[r]);
    BitVec lane;
    for (int i = 0; i < kWidth; ++i) lane[i] = 1u << i;
    const Vec hidden = broadcast(value);
    for (int j = 0; j < columns; j += kWidth) {
      BitVec word = static_cast<std::uint32_t>(seen >> j) - BitVec{};
      store(s + j, (word & lane) != 0 ? load(s + j) : hidden);
    }
  }

 private:
  static Range joined(Range a, Range b) { return {imin(a.begin, b.begin), imax(a.end, b.end)}; }
  static Range common(Range a, Range b) { return {imax(a.begin, b.begin), imin(a.end, b.end)}; }

  template <class Void>
  auto rows_of_box(const Box<3>& box, const BasicTensorRef<Void>& x, int head) const {
    const std::int64_t strides[3] = {x.outer_stride[0], x.outer_stride[1], x.token_stride};
    return rows_at(box, x, head, TokenMap<3>::make(problem_.neighborhood, group_, strides));
  }

  template <class Void>
  auto rows_at(const Box<3>& box, const BasicTensorRef<Void>& x, int head,
               const TokenMap<3>& map) const {
    std::int64_t size = bytes_of(problem_.dtype);
    std::int64_t first = seq_.batch * x.batch_stride + head * x.head_stride + map.first;
    auto* data = bytes(x.data) + first * size;
    return RowsOfBox<std::remove_pointer_t<decltype(data)>>{
        data, {map.step[0] * size, map.step[1] * size, map.step[2] * size}, box, problem_.dtype};
  }

  const AttentionProblem& problem_;
  const Sequence& seq_;
  DilationGroup<3> group_;
  Neighborhood<3> pattern_;
  BoxGrid<3> query_grid_, panel_grid_, key_grid_;
  TokenMap<3> numbers_;  // of the tokens of a batch entry
};

}  // namespace tileattn::cpu::TILEATTN_ISA
