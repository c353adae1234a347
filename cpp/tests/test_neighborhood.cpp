// The neighborhood pattern, its boxes and its token map, on all small grids, against the
// definition, which is written out here for all tokens at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tileattn/pattern/neighborhood.h"

namespace tileattn {
namespace {

using Axis = NeighborhoodSpec::Axis;

std::string describe(const NeighborhoodSpec& spec) {
  std::string text = spec.clip ? "clip" : "";
  for (const Axis& a : spec.axis)
    text += " [length " + std::to_string(a.length) + " window " + std::to_string(a.window) +
            " stride " + std::to_string(a.stride) + " dilation " + std::to_string(a.dilation) +
            " offset " + std::to_string(a.offset) + " causal " + std::to_string(a.causal) + "]";
  return text;
}

/// Whether token i sees token j of the whole axis.
bool defined_visible(const Axis& axis, bool clip, int i, int j) {
  const int d = axis.dilation, s = axis.stride, w = axis.window;
  if (i % d != j % d) return false;
  int group_length = (axis.length - i % d + d - 1) / d;
  int p = i / d, key = j / d, run = (p + axis.offset) / s * s - axis.offset;
  if (axis.causal) return key <= p && key >= std::min(run + s - 1, group_length - 1) - w + 1;
  int start = run + s / 2 - w / 2;
  if (!clip)
    start = std::clamp(std::min(run + s / 2, group_length - 1) - w / 2, 0, group_length - w);
  return key >= start && key < start + w;
}

template <int Rank>
struct Group {
  NeighborhoodSpec spec;
  DilationGroup<Rank> place;
  Neighborhood<Rank> pattern;
  BoxTiling<Rank> tiling;

  const Axis& axis(int a) const { return spec.axis[NeighborhoodSpec::kMaxRank - Rank + a]; }

  /// Its token on an axis of the whole grid.
  int token(int a, int position) const { return place.first[a] + position * axis(a).dilation; }

  bool defined_visible(const Coordinates<Rank>& query, const Coordinates<Rank>& key) const {
    bool seen = true;
    for (int a = 0; a < Rank; ++a)
      seen = seen && tileattn::defined_visible(axis(a), spec.clip, token(a, query.at[a]),
                                               token(a, key.at[a]));
    return seen;
  }
};

template <int Rank>
std::string check_tile_pair(const Group<Rank>& g, int qt, int kt, bool key_visited,
                            bool query_visited) {
  const Box<Rank> queries = g.tiling.queries[qt], keys = g.tiling.keys[kt];
  const auto bits = BoxBits<Rank>::make(keys);
  int seen = 0;
  for (int i = 0; i < queries.size(); ++i) {
    std::uint64_t word = bits.within(g.pattern.keys_of(queries[i]));
    if (word & ~bits.all()) return "bits beyond the box";
    for (int j = 0; j < keys.size(); ++j) {
      bool defined = g.defined_visible(queries[i], keys[j]);
      if (g.pattern.visible(queries[i], keys[j]) != defined) return "visible differs";
      if ((word >> j & 1) != defined) return "bits differ";
      seen += defined;
    }
  }
  if (key_visited != query_visited) return "keys_of and queries_of disagree";
  if (key_visited != (seen > 0)) return "a tile is visited in vain, or left out";
  Cover cover = g.pattern.cover(qt, kt, g.tiling);
  if ((cover == Cover::kEmpty) != (seen == 0)) return "cover is empty where it should not be";
  bool full = keys.size() == g.tiling.keys.rows() && seen == queries.size() * keys.size();
  if ((cover == Cover::kFull) != full) return "cover is full where it should not be";
  return "";
}

/// The tiles of a walk, or a complaint if they do not ascend within [0, count).
template <int Rank>
std::string read_walk(const BoxWalk<Rank>& walk, int count, std::set<int>& tiles) {
  int previous = -1;
  for (int n = 0; n < walk.size(); ++n) {
    if (walk[n] <= previous || walk[n] >= count) return "walk does not ascend within its range";
    previous = walk[n];
    tiles.insert(walk[n]);
  }
  return "";
}

template <int Rank>
std::string broken_promise(const Group<Rank>& g) {
  int query_tiles = g.tiling.queries.count(), key_tiles = g.tiling.keys.count();
  std::vector<std::set<int>> keys_of(query_tiles), queries_of(key_tiles);
  std::string problem;
  for (int qt = 0; qt < query_tiles && problem.empty(); ++qt)
    problem = read_walk(g.pattern.keys_of(qt, g.tiling), key_tiles, keys_of[qt]);
  for (int kt = 0; kt < key_tiles && problem.empty(); ++kt)
    problem = read_walk(g.pattern.queries_of(kt, g.tiling), query_tiles, queries_of[kt]);
  for (int qt = 0; qt < query_tiles; ++qt)
    for (int kt = 0; kt < key_tiles && problem.empty(); ++kt)
      problem = check_tile_pair(g, qt, kt, keys_of[qt].count(kt) > 0, queries_of[kt].count(qt) > 0);
  return problem;
}

/// Every group of the spec, and that the groups' tiles hold each token once.
template <int Rank>
std::string check(const NeighborhoodSpec& spec, const int (&query_box)[Rank],
                  const int (&key_box)[Rank]) {
  std::int64_t strides[Rank], tokens = 1;
  for (int a = Rank - 1; a >= 0; --a) {
    strides[a] = tokens;
    tokens *= spec.axis[NeighborhoodSpec::kMaxRank - Rank + a].length;
  }
  std::vector<int> held(tokens);
  for (int n = 0; n < spec.groups(); ++n) {
    Group<Rank> g{spec, DilationGroup<Rank>::make(spec, n), {}, {}};
    g.pattern = Neighborhood<Rank>::make(spec, g.place);
    for (int a = 0; a < Rank; ++a) {
      g.tiling.queries.length[a] = g.tiling.keys.length[a] = g.place.length[a];
      g.tiling.queries.box[a] = query_box[a];
      g.tiling.keys.box[a] = key_box[a];
    }
    if (std::string problem = broken_promise(g); !problem.empty()) return problem;
    const auto map = TokenMap<Rank>::make(spec, g.place, strides);
    for (int t = 0; t < g.tiling.keys.count(); ++t)
      for (int row = 0; row < g.tiling.keys[t].size(); ++row) ++held[map(g.tiling.keys[t][row])];
  }
  bool once = std::all_of(held.begin(), held.end(), [](int times) { return times == 1; });
  return once ? "" : "a token is in no tile, or in several";
}

template <class Visit>
void for_each_axis(int longest, Visit visit) {
  for (int length = 1; length <= longest; ++length)
    for (int dilation = 1; dilation <= std::min(length, 3); ++dilation)
      for (int window = 1; window * dilation <= length; ++window)
        for (int stride = 1; stride <= window; ++stride)
          for (bool causal : {false, true})
            visit(Axis{length, window, stride, dilation, 0, causal});
}

TEST(Neighborhood, KeepsItsPromisesOnOneAxis) {
  for_each_axis(12, [](const Axis& axis) {
    NeighborhoodSpec spec{1, {{}, {}, axis}};
    for (int queries : {1, 2, 3, 4, 7})
      for (int keys : {1, 3, 4, 16})
        ASSERT_EQ(check<1>(spec, {queries}, {keys}), "") << describe(spec);
  });
}

TEST(Neighborhood, KeepsItsPromisesWithClippedWindows) {
  for (int length = 1; length <= 9; ++length)
    for (int stride = 1; stride <= 4; ++stride)
      for (int window = stride; window <= 12; ++window)
        for (int offset = 0; offset < stride; ++offset) {
          NeighborhoodSpec spec{1, {{}, {}, {length, window, stride, 1, offset, false}}, true};
          for (int queries : {1, 3, 4})
            for (int keys : {1, 3, 4})
              ASSERT_EQ(check<1>(spec, {queries}, {keys}), "") << describe(spec);
        }
}

TEST(Neighborhood, KeepsItsPromisesOnTwoAxes) {
  for_each_axis(5, [](const Axis& first) {
    for_each_axis(5, [&](const Axis& second) {
      NeighborhoodSpec spec{2, {{}, first, second}};
      ASSERT_EQ(check<2>(spec, {2, 3}, {3, 2}), "") << describe(spec);
    });
  });
}

TEST(Neighborhood, KeepsItsPromisesOnThreeAxes) {
  for_each_axis(3, [](const Axis& first) {
    for_each_axis(3, [&](const Axis& second) {
      for (const Axis& third : {Axis{5, 3, 1, 1}, Axis{5, 3, 2, 1, 0, true}, Axis{4, 2, 2, 2}}) {
        NeighborhoodSpec spec{3, {first, second, third}};
        ASSERT_EQ(check<3>(spec, {2, 1, 3}, {1, 2, 2}), "") << describe(spec);
      }
    });
  });
}

TEST(Neighborhood, PerfectlyBlockSparseHasNoPartialTile) {
  const NeighborhoodSpec spec{2, {{}, {32, 16, 8, 1}, {16, 8, 8, 1}}};
  const auto group = DilationGroup<2>::make(spec, 0);
  const auto pattern = Neighborhood<2>::make(spec, group);
  const BoxTiling<2> tiling{{{32, 16}, {8, 8}}, {{32, 16}, {4, 8}}};
  for (int qt = 0; qt < tiling.queries.count(); ++qt) {
    const auto walk = pattern.keys_of(qt, tiling);
    EXPECT_EQ(walk.size(), 4);
    for (int n = 0; n < walk.size(); ++n)
      EXPECT_EQ(pattern.cover(qt, walk[n], tiling), Cover::kFull);
  }
}

TEST(Neighborhood, LongAxesDoNotOverflow) {
  constexpr int kLong = (1 << 29) - 1;
  const NeighborhoodAxis axis{kLong, kLong, kLong, 0, false, false};
  EXPECT_EQ(axis.keys_of(kLong - 1).size(), kLong);
  EXPECT_EQ(axis.queries_of({kLong - 1, kLong}).size(), kLong);
}

}  // namespace
}  // namespace tileattn
