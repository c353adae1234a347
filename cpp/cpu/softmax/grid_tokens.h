// A part of a grid, cut into tiles that are boxes: the counterpart of
// sequence_tokens.h. Grids of one or two axes have first axes of length 1.
#pragma once

#include "cpu/common/pack.h"
#include "cpu/softmax/plan.h"
#include "tileattn/pattern/neighborhood.h"

namespace tileattn::cpu::TILEATTN_ISA {

class GridTokens {
 public:
  static constexpr bool kOnAGrid = true;

  GridTokens(const AttentionProblem& problem, const Sequence& sequence)
      : seq_(sequence), part_(sequence.part), problem_(problem) {
    const GridCut& cut = *sequence.cut;
    for (int a = 0; a < 3; ++a) {
      query_grid_.length[a] = panel_grid_.length[a] = key_grid_.length[a] = part_.length[a];
      query_grid_.box[a] = cut.query_box[a];
      panel_grid_.box[a] = cut.panel_box[a];
      key_grid_.box[a] = cut.panel_box[a] * cut.panels_per_tile[a];
    }
    const auto& axis = problem.neighborhood.axis;
    numbers_ = TokenMap<3>::make(
        problem.neighborhood, part_,
        {std::int64_t{axis[1].length} * axis[2].length, std::int64_t{axis[2].length}, 1});
  }

  /// A query tile.
  struct Queries {
    int tile;
    Box<3> box;
    int rows;
    std::int64_t token[kTile.queries];  // of each row, among those of a batch entry
    std::uint8_t at[kTile.queries][3];  // its place in the box
    int size() const { return rows; }
  };

  Queries queries(int tile) const {
    Queries made;
    made.tile = tile;
    made.box = query_grid_[tile];
    made.rows = made.box.size();
    for_each_run(made.box, [&](int row, const Coordinates<3>& token) {
      const std::int64_t number = numbers_(token);
      for (int i = 0; i < made.box.axis[2].size(); ++i) {
        made.token[row + i] = number + i * numbers_.step[2];
        for (int a = 0; a < 2; ++a) made.at[row + i][a] = token.at[a] - made.box.axis[a].begin;
        made.at[row + i][2] = i;
      }
    });
    return made;
  }
  std::int64_t token(const Queries& queries, int r) const { return queries.token[r]; }
  std::int64_t dq_row(const Queries& queries) const {
    return seq_.dq_row + std::int64_t{queries.tile} * query_grid_.rows();
  }

  /// Panels of keys: those of a key tile, or some that a query tile visits. Extra keys stand
  /// on a last axis of their own and are seen by every query.
  struct Keys {
    int size = 0;  // panels
    bool extra = false;
    int packed[kPanelsPerTile];       // each panel's number among the packed ones
    BoxBits<3> bits[kPanelsPerTile];  // and its tokens
    int panels() const { return size; }
    int count(int panel) const { return bits[panel].box.size(); }
    int packed_panel(int panel) const { return packed[panel]; }
  };

  /// A key tile: the owner of a piece of dk and dv.
  Keys keys(int tile) const {
    if (tile < seq_.extra_tiles) return extra_keys(tile);
    return some_of(panel_grid_.touched_by(key_grid_[tile - seq_.extra_tiles]), 0);
  }

  /// Panel number `packed` alone.
  Keys panel(int packed) const {
    Keys made;
    made.extra = packed < seq_.extra_panels;
    if (made.extra) add_extra_panel(made, packed);
    else add_panel(made, packed - seq_.extra_panels);
    return made;
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

 protected:
  /// As many panels of the walk as fit, from number `first` on.
  Keys some_of(const BoxWalk<3>& panels, int first) const {
    Keys made;
    const int end = imin(first + kPanelsPerTile, panels.size());
    for (int n = first; n < end; ++n) add_panel(made, panels[n]);
    return made;
  }
  Keys extra_keys(int tile) const {
    Keys made;
    made.extra = true;
    const int first = tile * kPanelsPerTile;
    const int end = imin(first + kPanelsPerTile, seq_.extra_panels);
    for (int panel = first; panel < end; ++panel) add_extra_panel(made, panel);
    return made;
  }

  const Sequence& seq_;
  const DilationGroup<3>& part_;
  BoxGrid<3> query_grid_, panel_grid_, key_grid_;
  TokenMap<3> numbers_;  // of the tokens of a batch entry

 private:
  void add_panel(Keys& keys, int panel) const {
    keys.packed[keys.size] = seq_.extra_panels + panel;
    keys.bits[keys.size++] = BoxBits<3>::make(panel_grid_[panel]);
  }
  void add_extra_panel(Keys& keys, int panel) const {
    keys.packed[keys.size] = panel;
    keys.bits[keys.size++] =
        BoxBits<3>::make({{{0, 1}, {0, 1}, tokens_of(panel, kPanel, problem_.extra_keys)}});
  }
  template <class Void>
  auto rows_of_box(const Box<3>& box, const BasicTensorRef<Void>& x, int head) const {
    const std::int64_t strides[3] = {x.outer_stride[0], x.outer_stride[1], x.token_stride};
    return rows_at(box, x, head, TokenMap<3>::make(problem_.neighborhood, part_, strides));
  }

  template <class Void>
  auto rows_at(const Box<3>& box, const BasicTensorRef<Void>& x, int head,
               const TokenMap<3>& map) const {
    const std::int64_t size = bytes_of(problem_.dtype);
    auto* data = bytes(x.data) + (seq_.batch * x.batch_stride + head * x.head_stride) * size;
    RowsOfBox<std::remove_pointer_t<decltype(data)>> rows;
    rows.dtype = problem_.dtype;
    for_each_run(box, [&](int row, const Coordinates<3>& token) {
      auto* first = data + map(token) * size;
      for (int i = 0; i < box.axis[2].size(); ++i)
        rows.token[row + i] = first + i * map.step[2] * size;
    });
    return rows;
  }

  const AttentionProblem& problem_;
};

}  // namespace tileattn::cpu::TILEATTN_ISA
