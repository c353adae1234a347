// The promises of pattern.h, checked for every small shape against the definition
// of each option, written out here independently of the patterns.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "tileattn/pattern/catalogue.h"

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

/// The tiles that a cursor visits, each with its cover, or a complaint if they do not ascend
/// within [0, count).
template <class Cursor>
std::string read_visits(Cursor cursor, int count, std::map<int, Cover>& visits) {
  int previous = -1;
  for (Visit<int> visit; cursor.next(visit);) {
    if (visit.tile <= previous || visit.tile >= count)
      return "visits do not ascend within their range";
    previous = visit.tile;
    visits[visit.tile] = visit.cover;
  }
  return "";
}

template <class Pattern>
std::string check_tile_pair(const Pattern& pattern, const Shape& s, int qt, int kt,
                            const std::map<int, Cover>& keys_of,
                            const std::map<int, Cover>& queries_of) {
  Range queries = tokens_of(qt, s.tiling.queries, s.len_q);
  Range keys = tokens_of(kt, s.tiling.keys, s.len_k);
  int seen = 0;
  for (int i = queries.begin; i < queries.end; ++i)
    for (int j = keys.begin; j < keys.end; ++j) seen += defined_visible(s, i, j);
  if (keys_of.count(kt) != (seen > 0)) return "keys_of is not the tiles with something visible";
  if (queries_of.count(qt) != (seen > 0))
    return "queries_of is not the tiles with something visible";
  Cover cover = pattern.cover(qt, kt, s.tiling);
  if (seen > 0 && (keys_of.at(kt) != cover || queries_of.at(qt) != cover))
    return "a visit's cover differs";
  if ((cover == Cover::kEmpty) != (seen == 0)) return "cover is empty where it should not be";
  if (cover == Cover::kFull && seen != queries.size() * s.tiling.keys)
    return "cover is full with something hidden";
  return "";
}

template <class Pattern>
std::string broken_promise(const Shape& s) {
  const Pattern pattern = Pattern::make(s.spec, {0, 0, s.len_q, s.len_k});
  for (int i = 0; i < s.len_q; ++i)
    for (int j = -2; j < s.len_k + 2; ++j)
      if (pattern.visible(i, j) != defined_visible(s, i, j)) return "visible differs";
  for (int i = 0; i < s.len_q; ++i)
    for (int first : {-70, -3, 0, 2, 5})
      for (int bit = 0; bit < 64; ++bit)
        if ((pattern.seen(i, first) >> bit & 1) != defined_visible(s, i, first + bit))
          return "seen differs";
  int query_tiles = ceil_div(s.len_q, s.tiling.queries);
  int key_tiles = ceil_div(s.len_k, s.tiling.keys);
  std::vector<std::map<int, Cover>> keys_of(query_tiles), queries_of(key_tiles);
  std::string problem;
  for (int qt = 0; qt < query_tiles && problem.empty(); ++qt)
    problem = read_visits(pattern.keys_of(qt, s.tiling), key_tiles, keys_of[qt]);
  for (int kt = 0; kt < key_tiles && problem.empty(); ++kt)
    problem = read_visits(pattern.queries_of(kt, s.tiling), query_tiles, queries_of[kt]);
  for (int qt = 0; qt < query_tiles; ++qt)
    for (int kt = 0; kt < key_tiles && problem.empty(); ++kt)
      problem = check_tile_pair(pattern, s, qt, kt, keys_of[qt], queries_of[kt]);
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
  auto window = SlidingWindow::make({1 << 30, 1 << 30, 1 << 30, false}, {0, 0, kLong, kLong});
  EXPECT_TRUE(window.visible(0, kLong - 1));
  EXPECT_TRUE(window.visible(kLong - 1, 0));
  EXPECT_EQ(window.keys_of(0, {128, 128}).size(), kLong / 128);
}

TEST(Patterns, PartsOfACursorAreTheWhole) {
  const auto window = SlidingWindow::make({9, 0, 3, false}, {0, 0, 40, 40});
  for (int query_tile = 0; query_tile < 10; ++query_tile)
    for (int parts = 1; parts <= 5; ++parts) {
      const auto whole = window.keys_of(query_tile, {4, 4});
      std::vector<int> tiles, joined;
      auto read = [](auto cursor, std::vector<int>& to) {
        const int size = cursor.size(), before = static_cast<int>(to.size());
        for (Visit<int> visit; cursor.next(visit);) to.push_back(visit.tile);
        EXPECT_EQ(static_cast<int>(to.size()) - before, size);
      };
      read(whole, tiles);
      for (int n = 0; n < parts; ++n) read(whole.part(n, parts), joined);
      EXPECT_EQ(joined, tiles);
    }
}

}  // namespace
}  // namespace tileattn
