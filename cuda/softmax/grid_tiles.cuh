// Tiles of tokens on a grid: boxes of a dilation group, and tiles of extra keys.
//
// The counterpart of sequence_tiles.cuh, which says what the loops ask of tiles.
// A batch entry has a slot for each box of each dilation group, as many as the
// largest group has, and first of all those of the extra keys: in the backward
// these meet every query, and had better start early. Rows are read straight
// from the tensors by their strides, which a dilation multiplies.
#pragma once

#include <cutlass/fast_math.h>

#include <climits>

#include "sequence_tiles.cuh"

namespace tileattn::cuda {

/// A box by the first of its tokens, counted within the dilation group.
struct GridTile {
  static constexpr int kExtraKeys = -1;  // in place of a group: these lie along the last axis
  int group;
  Coordinates<3> first;

  CUTE_DEVICE bool is_extra() const { return group == kExtraKeys; }
};

struct GridSlots {
  int batch;
  int groups;
  int extra;  // tiles of extra keys
  BoxSide side;

  TILEATTN_HOST_DEVICE int per_entry() const { return extra + groups * side.count(); }
  TILEATTN_HOST_DEVICE int count() const { return batch * per_entry(); }

  /// The tile of slot n of an entry; extra keys have tiles of `extra_rows`.
  CUTE_DEVICE GridTile tile(int n, int extra_rows) const {
    if (n < extra) return {GridTile::kExtraKeys, {{0, 0, n * extra_rows}}};
    GridTile tile;
    n -= extra;
    for (int a = 2; a >= 0; --a) {
      int rest = n / side.along[a];
      tile.first.at[a] = (n - rest * side.along[a]) << side.bits[a];
      n = rest;
    }
    tile.group = n;
    return tile;
  }
  /// And back, for tiles that are no extra keys.
  CUTE_DEVICE int slot(const GridTile& tile) const {
    int n = tile.group;
    for (int a = 0; a < 3; ++a) n = n * side.along[a] + (tile.first.at[a] >> side.bits[a]);
    return extra + n;
  }
};

/// The tiles to visit: those of the extra keys, then a box of boxes in one or more groups.
class GridCursor {
 public:
  CUTE_DEVICE GridCursor(const GridSlots& slots, int extra_rows, Range groups, const Box<3>& tokens)
      : extra_(slots.extra), extra_rows_(extra_rows), first_group_(groups.begin) {
    int boxes = groups.size();
    for (int a = 0; a < 3; ++a) {
      bits_[a] = slots.side.bits[a];
      begin_.at[a] = tokens.axis[a].begin >> bits_[a] << bits_[a];
      int along = ((tokens.axis[a].end - 1) >> bits_[a]) - (tokens.axis[a].begin >> bits_[a]) + 1;
      along_[a] = cutlass::FastDivmod(along);
      boxes *= along;
    }
    end_ = extra_ + boxes;
  }

  using Tile = GridTile;

  /// The next visit, if there is one. Covers are asked of the words.
  CUTE_DEVICE bool next(Visit<GridTile>& visit) {
    if (next_ == end_) return false;
    visit = {tile(next_++), Cover::kPartial};
    return true;
  }

  /// How many are left.
  CUTE_DEVICE int size() const { return end_ - next_; }

  /// Part `n` of `parts` that are about equally long.
  CUTE_DEVICE GridCursor part(int n, int parts) const {
    GridCursor some = *this;
    const int share = tileattn::ceil_div(size(), parts);
    some.next_ = imin(next_ + n * share, end_);
    some.end_ = imin(some.next_ + share, end_);
    return some;
  }

 private:
  CUTE_DEVICE GridTile tile(int n) const {
    if (n < extra_) return {GridTile::kExtraKeys, {{0, 0, n * extra_rows_}}};
    GridTile tile;
    n -= extra_;
    for (int a = 2; a >= 0; --a) {
      int rest, at;
      along_[a](rest, at, n);
      tile.first.at[a] = begin_.at[a] + (at << bits_[a]);
      n = rest;
    }
    tile.group = first_group_ + n;
    return tile;
  }

  int extra_, extra_rows_, first_group_;
  int next_ = 0, end_;
  int bits_[3];
  Coordinates<3> begin_;
  cutlass::FastDivmod along_[3];
};

template <class T>
struct RowsOfBox {
  T* first;
  std::int64_t step[3];
  int extent[3];  // tokens from the first one to the end of the grid
  int bits[3];    // of the box, as BoxSide has them

  CUTE_DEVICE bool has(int row) const {
    Coordinates<3> at = place_in_box(row, bits);
    return at.at[0] < extent[0] && at.at[1] < extent[1] && at.at[2] < extent[2];
  }
  CUTE_DEVICE T* operator[](int row) const {
    Coordinates<3> at = place_in_box(row, bits);
    return first + at.at[0] * step[0] + at.at[1] * step[1] + at.at[2] * step[2];
  }
};

template <class Config>
class Tiles<Config, Neighborhood<3>> {
 public:
  using Slots = GridSlots;
  using Tile = GridTile;
  using AnyPattern = Neighborhood<3>;

  static GridPlan plan(const AttentionProblem& problem) {
    return plan_grid(problem.neighborhood, Config::kQueries, Config::kKeys);
  }
  TILEATTN_HOST_DEVICE static Slots query_slots(const AttentionProblem& problem,
                                                const GridPlan& plan) {
    return {problem.batch, problem.neighborhood.groups(), 0, plan.queries};
  }
  TILEATTN_HOST_DEVICE static Slots key_slots(const AttentionProblem& problem,
                                              const GridPlan& plan) {
    return {problem.batch, problem.neighborhood.groups(),
            tileattn::ceil_div(problem.extra_keys, Config::kKeys), plan.keys};
  }
  static int most_visits(const AttentionProblem& problem, const GridPlan& plan) {
    int visits = 1;
    for (int a = 0; a < 3; ++a) {
      const auto& axis = problem.neighborhood.axis[a];
      int seen = axis.window + axis.stride + (1 << plan.queries.bits[a]);
      visits *= imin(plan.keys.along[a], (seen >> plan.keys.bits[a]) + 2);
    }
    return visits + key_slots(problem, plan).extra;
  }

  CUTE_DEVICE Tiles(const AttentionProblem& problem, const GridPlan& plan, int entry,
                    const Tile& own)
      : problem_(problem),
        plan_(plan),
        entry_(entry),
        own_(own),
        group_(DilationGroup<3>::make(problem.neighborhood, imax(own.group, 0))),
        pattern_(Neighborhood<3>::make(problem.neighborhood, group_)) {}

  CUTE_DEVICE static Tiles of_slot(const AttentionProblem& problem, const GridPlan& plan,
                                   const Slots& slots, int slot, int /*head*/) {
    int entry = slot / slots.per_entry();
    return {problem, plan, entry, slots.tile(slot - entry * slots.per_entry(), Config::kKeys)};
  }

  CUTE_DEVICE const Tile& own() const { return own_; }
  /// Small dilation groups leave slots empty.
  CUTE_DEVICE bool exists() const {
    bool in_grid = true;
    for (int a = 0; a < 3; ++a) in_grid = in_grid && own_.first.at[a] < group_.length[a];
    return own_.is_extra() || in_grid;
  }
  CUTE_DEVICE bool attends() const { return exists(); }

  CUTE_DEVICE GridCursor keys() const {
    return {key_slots(problem_, plan_),
            Config::kKeys,
            {own_.group, own_.group + 1},
            pattern_.keys_of_any(tokens_of_own(plan_.queries))};
  }
  /// Extra keys meet the queries of all groups.
  CUTE_DEVICE GridCursor queries() const {
    auto slots = query_slots(problem_, plan_);
    const int* length = group_.length;
    if (own_.is_extra())
      return {slots, 0, {0, slots.groups}, {{{0, length[0]}, {0, length[1]}, {0, length[2]}}}};
    return {
        slots, 0, {own_.group, own_.group + 1}, pattern_.queries_of_any(tokens_of_own(plan_.keys))};
  }

  template <class T, class Ref>
  CUTE_DEVICE RowsOfBox<T> query_rows(const Ref& tensor, const Tile& tile, int head) const {
    return rows<T>(tensor, tile, plan_.queries, head);
  }
  template <class T, class Ref>
  CUTE_DEVICE RowsOfBox<T> key_rows(const Ref& tensor, const Ref& extra, const Tile& tile,
                                    int head) const {
    if (!tile.is_extra()) return rows<T>(tensor, tile, plan_.keys, head);
    int first = tile.first.at[2];
    return {row_pointer<T>(extra, entry_, first, head),
            {0, 0, extra.token_stride},
            {1, 1, problem_.extra_keys - first},
            {0, 0, kKeyBits}};
  }
  template <class T, class Ref>
  CUTE_DEVICE RowsOfBox<T> own_query_rows(const Ref& tensor, int head) const {
    return query_rows<T>(tensor, own_, head);
  }
  template <class T, class Ref>
  CUTE_DEVICE RowsOfBox<T> own_key_rows(const Ref& tensor, const Ref& extra, int head) const {
    return key_rows<T>(tensor, extra, own_, head);
  }
  template <class T>
  CUTE_DEVICE RowsOfBox<T> result_rows(T* array, int width, const Tile& tile, int head) const {
    const auto& axis = problem_.neighborhood.axis;
    std::int64_t z = std::int64_t{problem_.heads_q} * width, y = z * axis[2].length;
    return rows(array + entry_ * y * axis[1].length * axis[0].length + head * width,
                {y * axis[1].length, y, z}, tile, plan_.queries);
  }

  CUTE_DEVICE int query_slot(const Tile& tile) const {
    auto slots = query_slots(problem_, plan_);
    return entry_ * slots.per_entry() + slots.slot(tile);
  }

  /// The keys that a row of a query tile sees; a row that is no token does not mind.
  CUTE_DEVICE Box<3> window(const Tile& tile, int row) const {
    Coordinates<3> at = place_in_box(row, plan_.queries.bits);
    bool inside = true;
    for (int a = 0; a < 3; ++a) {
      at.at[a] += tile.first.at[a];
      inside = inside && at.at[a] < group_.length[a];
    }
    return inside ? pattern_.keys_of(at) : Box<3>{{{0, INT_MAX}, {0, INT_MAX}, {0, INT_MAX}}};
  }

  /// Bit n tells whether `window` shows the n-th key after `row` of a key tile.
  CUTE_DEVICE std::uint64_t visible_keys(const Tile& tile, int row, const Box<3>& window) const {
    BoxBits<3> word = plan_.word;
    if (tile.is_extra()) {
      int keys = imin(problem_.extra_keys - tile.first.at[2] - row, word.box.size());
      return keys > 0 ? ~std::uint64_t{0} >> (64 - keys) : 0;
    }
    Coordinates<3> at = place_in_box(row, plan_.keys.bits);
    for (int a = 0; a < 3; ++a) {
      int origin = tile.first.at[a] + at.at[a];
      word.box.axis[a] = {origin, origin + word.box.axis[a].end};
    }
    return window.contains(word.box) ? word.all() : word.within(window);
  }

 private:
  static constexpr int kKeyBits = cutlass::log2_down<Config::kKeys>::value;

  /// The tokens of the own box.
  CUTE_DEVICE Box<3> tokens_of_own(const BoxSide& side) const {
    Box<3> tokens;
    for (int a = 0; a < 3; ++a) {
      int first = own_.first.at[a];
      tokens.axis[a] = {first, imin(first + (1 << side.bits[a]), group_.length[a])};
    }
    return tokens;
  }

  template <class T, class Ref>
  CUTE_DEVICE RowsOfBox<T> rows(const Ref& tensor, const Tile& tile, const BoxSide& side,
                                int head) const {
    return rows(row_pointer<T>(tensor, entry_, 0, head),
                {tensor.outer_stride[0], tensor.outer_stride[1], tensor.token_stride}, tile, side);
  }
  /// `strides` are those of neighbouring tokens of the grid, `origin` its first token.
  template <class T>
  CUTE_DEVICE RowsOfBox<T> rows(T* origin, const std::int64_t (&strides)[3], const Tile& tile,
                                const BoxSide& side) const {
    DilationGroup<3> group = tile.group == own_.group
                                 ? group_
                                 : DilationGroup<3>::make(problem_.neighborhood, tile.group);
    auto map = TokenMap<3>::make(problem_.neighborhood, group, strides);
    RowsOfBox<T> rows;
    rows.first = origin + map(tile.first);
    for (int a = 0; a < 3; ++a) {
      rows.step[a] = map.step[a];
      rows.extent[a] = group.length[a] - tile.first.at[a];
      rows.bits[a] = side.bits[a];
    }
    return rows;
  }

  const AttentionProblem& problem_;
  const GridPlan& plan_;
  int entry_;
  Tile own_;
  DilationGroup<3> group_;  // of the own tile
  Neighborhood<3> pattern_;
};

}  // namespace tileattn::cuda
