// Neighborhood attention on a grid of one, two or three axes: a query sees the keys of a
// window around it, axis by axis. On one axis, for the query at position p:
//
//   the queries of a run of `stride` share the window of one of them, the leader;
//   the window starts window / 2 before the leader and holds `window` keys; at a border it
//   moves inwards (or, under `clip`, is cut off);
//   causal: it ends at the query instead, and starts window - 1 before the run's last query.
//
// Tokens a dilation apart form a group that sees nothing of the other groups. A group is a
// smaller grid of its own: its lengths are Neighborhood's, its place among all tokens is
// the TokenMap's. Source: Hassani et al., Neighborhood Attention Transformer (CVPR 2023);
// Generalized Neighborhood Attention (2025).
#pragma once

#include "tileattn/pattern/box.h"

namespace tileattn {

/// What a caller asks for, of all tokens. Lower ranks leave the first axes at length 1.
struct NeighborhoodSpec {
  struct Axis {
    int length = 1;
    int window = 1;
    int stride = 1;
    int dilation = 1;
    int offset = 0;  // the first run of queries is this much shorter
    bool causal = false;
  };
  static constexpr int kMaxRank = 3;
  int rank = 0;  // 0: no neighborhood
  Axis axis[kMaxRank];
  bool clip = false;

  TILEATTN_HOST_DEVICE int groups() const {
    return axis[0].dilation * axis[1].dilation * axis[2].dilation;
  }
};

/// One dilation group of the last `Rank` axes, or a part of one that is a grid of its own.
template <int Rank>
struct DilationGroup {
  int first[Rank];   // the group's first token on the axis
  int length[Rank];  // its tokens
  int offset[Rank];  // its first run of queries is this much shorter

  TILEATTN_HOST_DEVICE static DilationGroup make(const NeighborhoodSpec& spec, int index) {
    DilationGroup group;
    for (int a = Rank - 1; a >= 0; --a) {
      const auto& axis = spec.axis[NeighborhoodSpec::kMaxRank - Rank + a];
      int rest = index / axis.dilation;
      group.first[a] = index - rest * axis.dilation;
      group.length[a] = ceil_div(axis.length - group.first[a], axis.dilation);
      group.offset[a] = axis.offset;
      index = rest;
    }
    return group;
  }
};

/// Where the tokens of a dilation group are, in a tensor or in the numbering of all tokens.
template <int Rank>
struct TokenMap {
  std::int64_t first;
  std::int64_t step[Rank];

  /// `strides` are those of neighbouring tokens of the whole grid.
  TILEATTN_HOST_DEVICE static TokenMap make(const NeighborhoodSpec& spec,
                                            const DilationGroup<Rank>& group,
                                            const std::int64_t (&strides)[Rank]) {
    TokenMap map{};
    for (int a = 0; a < Rank; ++a) {
      map.first += group.first[a] * strides[a];
      map.step[a] = spec.axis[NeighborhoodSpec::kMaxRank - Rank + a].dilation * strides[a];
    }
    return map;
  }

  TILEATTN_HOST_DEVICE std::int64_t operator()(const Coordinates<Rank>& token) const {
    std::int64_t place = first;
    for (int a = 0; a < Rank; ++a) place += token.at[a] * step[a];
    return place;
  }
};

/// One axis of a dilation group. Both ends of the window never move back from a query to the
/// next, and windows of neighbours overlap or touch.
struct NeighborhoodAxis {
  int length;
  int window;
  int stride;
  int offset;
  bool causal;
  bool clip;

  /// The keys that a query sees: the definition.
  TILEATTN_HOST_DEVICE Range keys_of(int query) const {
    int run = (query + offset) / stride * stride - offset;
    if (causal) {
      int leader = imin(run + stride - 1, length - 1);
      return {imax(leader - window + 1, 0), query + 1};
    }
    int before = window / 2, leader = run + stride / 2;
    if (clip) return {imax(leader - before, 0), imin(leader - before + window, length)};
    int start = imax(0, imin(imin(leader, length - 1) - before, length - window));
    return {start, start + window};
  }

  /// The queries that see one of the keys.
  TILEATTN_HOST_DEVICE Range queries_of(Range keys) const {
    return {first_query([&](Range seen) { return seen.end > keys.begin; }),
            first_query([&](Range seen) { return seen.begin >= keys.end; })};
  }

 private:
  /// The first query whose window has moved as far as `reached` asks for; length if none has.
  template <class Reached>
  TILEATTN_HOST_DEVICE int first_query(Reached reached) const {
    int low = 0, high = length;
    while (low < high) {
      int middle = (low + high) / 2;
      if (reached(keys_of(middle))) high = middle;
      else low = middle + 1;
    }
    return low;
  }
};

template <int Rank>
struct Neighborhood {
  using Walk = BoxWalk<Rank>;
  NeighborhoodAxis axis[Rank];

  TILEATTN_HOST_DEVICE static Neighborhood make(const NeighborhoodSpec& spec,
                                                const DilationGroup<Rank>& group) {
    Neighborhood pattern;
    for (int a = 0; a < Rank; ++a) {
      const auto& of = spec.axis[NeighborhoodSpec::kMaxRank - Rank + a];
      pattern.axis[a] = {group.length[a], of.window, of.stride,
                         group.offset[a], of.causal, spec.clip};
    }
    return pattern;
  }

  TILEATTN_HOST_DEVICE Box<Rank> keys_of(const Coordinates<Rank>& query) const {
    Box<Rank> keys;
    for (int a = 0; a < Rank; ++a) keys.axis[a] = axis[a].keys_of(query.at[a]);
    return keys;
  }

  TILEATTN_HOST_DEVICE bool visible(const Coordinates<Rank>& query,
                                    const Coordinates<Rank>& key) const {
    bool seen = true;
    for (int a = 0; a < Rank; ++a) {
      Range keys = axis[a].keys_of(query.at[a]);
      seen = seen && keys.begin <= key.at[a] && key.at[a] < keys.end;
    }
    return seen;
  }

  /// Keys that some query of the box sees; as windows touch, each of these is seen.
  TILEATTN_HOST_DEVICE Box<Rank> keys_of_any(const Box<Rank>& queries) const {
    Box<Rank> keys;
    for (int a = 0; a < Rank; ++a)
      keys.axis[a] = {axis[a].keys_of(queries.axis[a].begin).begin,
                      axis[a].keys_of(queries.axis[a].end - 1).end};
    return keys;
  }

  /// Keys that every query of the box sees.
  TILEATTN_HOST_DEVICE Box<Rank> keys_of_all(const Box<Rank>& queries) const {
    Box<Rank> keys;
    for (int a = 0; a < Rank; ++a)
      keys.axis[a] = {axis[a].keys_of(queries.axis[a].end - 1).begin,
                      axis[a].keys_of(queries.axis[a].begin).end};
    return keys;
  }

  TILEATTN_HOST_DEVICE Box<Rank> queries_of_any(const Box<Rank>& keys) const {
    Box<Rank> queries;
    for (int a = 0; a < Rank; ++a) queries.axis[a] = axis[a].queries_of(keys.axis[a]);
    return queries;
  }

  // The promises of pattern.h, with a BoxTiling in the place of the Tiling.

  TILEATTN_HOST_DEVICE Walk keys_of(int query_tile, const BoxTiling<Rank>& tiling) const {
    return tiling.keys.touched_by(keys_of_any(tiling.queries[query_tile]));
  }

  TILEATTN_HOST_DEVICE Walk queries_of(int key_tile, const BoxTiling<Rank>& tiling) const {
    return tiling.queries.touched_by(queries_of_any(tiling.keys[key_tile]));
  }

  TILEATTN_HOST_DEVICE Cover cover(int query_tile, int key_tile,
                                   const BoxTiling<Rank>& tiling) const {
    const Box<Rank> queries = tiling.queries[query_tile], keys = tiling.keys[key_tile];
    if (!keys_of_any(queries).meets(keys)) return Cover::kEmpty;
    bool whole = keys.size() == tiling.keys.rows();
    return whole && keys_of_all(queries).contains(keys) ? Cover::kFull : Cover::kPartial;
  }
};

}  // namespace tileattn
