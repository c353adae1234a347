// The promises of pattern.h, checked for every small shape against the definition
// of each option, written out here independently of the patterns.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "tileattn/pattern/dispatch.h"

namespace tileattn {
namespace {

struct Shape {
  PatternSpec spec;
  int len_q, len_k;
  Tiling tiling;
};

std::string describe(const Shape& s) {
  return "left " + std::to_string(s.spec.left) + " right " + std::to_string(s.spec.right) +
         " sinks " + std::to_string(s.spec.sink_tokens) + " causal " +
         std::to_string(s.spec.causal) + " len_q " + std::to_string(s.len_q) + " len_k " +
         std::to_string(s.len_k) + " tiling " + std::to_string(s.tiling.queries) + "x" +
         std::to_string(s.tiling.keys);
}

bool defined_visible(const Shape& s, int query, int key) {
  if (key < 0 || key >= s.len_k) return false;
  int position = query + s.len_k - s.len_q;
  bool in_window = (s.spec.left == PatternSpec::kUnlimited || key >= position - s.spec.left) &&
                   (s.spec.right == PatternSpec::kUnlimited || key <= position + s.spec.right);
  return (in_window || key < s.spec.sink_tokens) && (!s.spec.causal || key <= position);
}

/// The tiles of a walk, or a complaint if they do not ascend within [0, count).
std::string read_walk(const TwoRuns& walk, int count, std::set<int>& tiles) {
  int previous = -1;
  for (int n = 0; n < walk.size(); ++n) {
    if (walk[n] <= previous || walk[n] >= count) return "walk does not ascend within its range";
    previous = walk[n];
    tiles.insert(walk[n]);
  }
  return "";
}

template <class Pattern>
std::string check_tile_pair(const Pattern& pattern, const Shape& s, int qt, int kt,
                            bool key_visited, bool query_visited) {
  Range queries = tokens_of(qt, s.tiling.queries, s.len_q);
  Range keys = tokens_of(kt, s.tiling.keys, s.len_k);
  int seen = 0;
  for (int i = queries.begin; i < queries.end; ++i)
    for (int j = keys.begin; j < keys.end; ++j) seen += defined_visible(s, i, j);
  if (seen > 0 && !key_visited) return "keys_of leaves out a tile with something visible";
  if (seen > 0 && !query_visited) return "queries_of leaves out a tile with something visible";
  Cover cover = pattern.cover(qt, kt, s.tiling);
  if ((cover == Cover::kEmpty) != (seen == 0)) return "cover is empty where it should not be";
  if (cover == Cover::kFull && seen != queries.size() * s.tiling.keys)
    return "cover is full with something hidden";
  return "";
}

template <class Pattern>
std::string broken_promise(const Shape& s) {
  const Pattern pattern = Pattern::make(s.spec, s.len_q, s.len_k);
  for (int i = 0; i < s.len_q; ++i)
    for (int j = -2; j < s.len_k + 2; ++j)
      if (pattern.visible(i, j) != defined_visible(s, i, j)) return "visible differs";
  int query_tiles = ceil_div(s.len_q, s.tiling.queries);
  int key_tiles = ceil_div(s.len_k, s.tiling.keys);
  std::vector<std::set<int>> keys_of(query_tiles), queries_of(key_tiles);
  std::string problem;
  for (int qt = 0; qt < query_tiles && problem.empty(); ++qt)
    problem = read_walk(pattern.keys_of(qt, s.tiling), key_tiles, keys_of[qt]);
  for (int kt = 0; kt < key_tiles && problem.empty(); ++kt)
    problem = read_walk(pattern.queries_of(kt, s.tiling), query_tiles, queries_of[kt]);
  for (int qt = 0; qt < query_tiles; ++qt)
    for (int kt = 0; kt < key_tiles && problem.empty(); ++kt)
      problem = check_tile_pair(pattern, s, qt, kt, keys_of[qt].count(kt) > 0,
                                queries_of[kt].count(qt) > 0);
  return problem;
}

template <class Visit>
void for_each_shape(PatternSpec spec, Visit visit) {
  for (int len_q = 0; len_q <= 6; ++len_q)
    for (int len_k = 0; len_k <= 6; ++len_k)
      for (int queries : {1, 2, 4})
        for (int keys : {1, 3, 4}) visit(Shape{spec, len_q, len_k, {queries, keys}});
}

template <class Visit>
void for_each_spec(Visit visit) {
  for (int left : {PatternSpec::kUnlimited, 0, 1, 3, 100})
    for (int right : {PatternSpec::kUnlimited, 0, 1, 3, 100})
      for (int sinks : {0, 1, 4, 100})
        for (bool causal : {false, true}) visit(PatternSpec{left, right, sinks, causal});
}

TEST(Patterns, DispatchedPatternKeepsItsPromises) {
  for_each_spec([](PatternSpec spec) {
    for_each_shape(spec, [](const Shape& s) {
      std::string problem = dispatch_pattern(
          s.spec, [&](auto tag) { return broken_promise<typename decltype(tag)::type>(s); });
      ASSERT_EQ(problem, "") << describe(s);
    });
  });
}

TEST(Patterns, SlidingWindowCoversEverySpec) {
  for_each_spec([](PatternSpec spec) {
    for_each_shape(spec, [](const Shape& s) {
      ASSERT_EQ(broken_promise<SlidingWindow>(s), "") << describe(s);
    });
  });
}

TEST(Patterns, DispatchChoosesTheCheapest) {
  constexpr int kAll = PatternSpec::kUnlimited;
  EXPECT_EQ(kind_of({kAll, kAll, 0, false}), PatternKind::kDense);
  EXPECT_EQ(kind_of({kAll, kAll, 5, false}), PatternKind::kDense);
  EXPECT_EQ(kind_of({kAll, kAll, 0, true}), PatternKind::kCausal);
  EXPECT_EQ(kind_of({kAll, 7, 5, true}), PatternKind::kCausal);
  EXPECT_EQ(kind_of({kAll, 0, 0, false}), PatternKind::kCausal);
  EXPECT_EQ(kind_of({kAll, 0, 5, false}), PatternKind::kSlidingWindow);
  EXPECT_EQ(kind_of({0, kAll, 0, true}), PatternKind::kSlidingWindow);
}

TEST(Patterns, LongSequencesDoNotOverflow) {
  constexpr int kLong = 1 << 29;
  auto window = SlidingWindow::make({1 << 30, 1 << 30, 1 << 30, false}, kLong, kLong);
  EXPECT_TRUE(window.visible(0, kLong - 1));
  EXPECT_TRUE(window.visible(kLong - 1, 0));
  EXPECT_EQ(window.keys_of(0, {128, 128}).size(), kLong / 128);
}

}  // namespace
}  // namespace tileattn
