// The planner's products of axis counts against counting every pair of tiles of the pattern.
#include <gtest/gtest.h>

#include <stdexcept>

#include "tileattn/planner.h"

namespace tileattn::planner {
namespace {

TileCounts counted(const NeighborhoodSpec& spec, const TileShape& shape) {
  TileCounts counts;
  std::int64_t query_tiles = 0, key_tiles = 0;
  for (int g = 0; g < spec.groups(); ++g) {
    const auto group = DilationGroup<3>::make(spec, g);
    const auto pattern = Neighborhood<3>::make(spec, group);
    BoxTiling<3> tiling;
    for (int a = 0; a < 3; ++a) {
      tiling.queries.length[a] = tiling.keys.length[a] = group.length[a];
      tiling.queries.box[a] = shape.queries[a];
      tiling.keys.box[a] = shape.keys[a];
    }
    query_tiles += tiling.queries.count();
    key_tiles += tiling.keys.count();
    for (int qt = 0; qt < tiling.queries.count(); ++qt)
      for (int kt = 0; kt < tiling.keys.count(); ++kt) {
        Cover cover = pattern.cover(qt, kt, tiling);
        counts.visited += cover != Cover::kEmpty;
        counts.full += cover == Cover::kFull;
      }
  }
  counts.all = query_tiles * key_tiles;
  return counts;
}

double counted_flop_bound(const NeighborhoodSpec& spec) {
  double tokens = 0, visible = 0;
  for (int g = 0; g < spec.groups(); ++g) {
    const auto group = DilationGroup<3>::make(spec, g);
    const auto pattern = Neighborhood<3>::make(spec, group);
    const Box<3> all = {{{0, group.length[0]}, {0, group.length[1]}, {0, group.length[2]}}};
    tokens += all.size();
    for (int i = 0; i < all.size(); ++i)
      for (int j = 0; j < all.size(); ++j) visible += pattern.visible(all[i], all[j]);
  }
  return tokens * tokens / visible;
}

const NeighborhoodSpec kSpecs[] = {
    {1, {{}, {}, {23, 5, 1, 1}}},
    {1, {{}, {}, {24, 8, 8, 1}}},
    {1, {{}, {}, {25, 4, 3, 3}}},
    {1, {{}, {}, {17, 6, 2, 1, 0, true}}},
    {2, {{}, {9, 4, 2, 1}, {14, 7, 7, 1}}},
    {2, {{}, {8, 3, 1, 2}, {11, 3, 2, 3, 0, true}}},
    {2, {{}, {9, 6, 2, 1, 1}, {7, 5, 3, 1, 2}}, true},
    {3, {{4, 2, 1, 2}, {6, 3, 3, 1}, {5, 4, 2, 1, 0, true}}},
};

TEST(Planner, CountsEqualTheWalkOfThePattern) {
  for (const NeighborhoodSpec& spec : kSpecs)
    for (const TileShape& shape : {TileShape{{1, 1, 1}, {1, 1, 1}}, TileShape{{1, 2, 3}, {1, 1, 4}},
                                   TileShape{{2, 4, 2}, {3, 2, 7}}}) {
      const TileCounts expected = counted(spec, shape), actual = count_tiles(spec, shape);
      EXPECT_EQ(actual.all, expected.all);
      EXPECT_EQ(actual.visited, expected.visited);
      EXPECT_EQ(actual.full, expected.full);
    }
}

TEST(Planner, FlopBoundIsTokensByVisibleKeys) {
  for (const NeighborhoodSpec& spec : kSpecs)
    EXPECT_NEAR(flop_bound(spec), counted_flop_bound(spec), 1e-9);
}

TEST(Planner, RankingIsCompleteAndAscends) {
  const NeighborhoodSpec spec{2, {{}, {16, 6, 1, 1}, {32, 10, 5, 1}}};
  const auto ranked = rank_tiles(spec, 16, 8);
  // 16 = 1x16 ... 16x1 and 8 = 1x8 ... 8x1.
  ASSERT_EQ(ranked.size(), 5u * 4u);
  for (std::size_t n = 0; n < ranked.size(); ++n) {
    EXPECT_EQ(ranked[n].visited, count_tiles(spec, ranked[n].shape).visited);
    if (n > 0) {
      EXPECT_LE(ranked[n - 1].visited, ranked[n].visited);
    }
  }
}

TEST(Planner, PerfectlyBlockSparse) {
  const NeighborhoodSpec spec{2, {{}, {64, 32, 16, 1}, {64, 32, 16, 1}}};
  const auto best = rank_tiles(spec, 64, 64).front();
  EXPECT_TRUE(best.perfectly_block_sparse());
  EXPECT_DOUBLE_EQ(best.tile_bound(), flop_bound(spec));
  EXPECT_EQ(best.partial_share(), 0.0);
  const NeighborhoodSpec sliding{2, {{}, {64, 32, 1, 1}, {64, 32, 1, 1}}};
  EXPECT_FALSE(rank_tiles(sliding, 64, 64).front().perfectly_block_sparse());
}

TEST(Planner, RefusesWhatIsNoNeighborhood) {
  EXPECT_THROW(flop_bound({1, {{}, {}, {8, 9, 1, 1}}}), std::invalid_argument);
  EXPECT_THROW(flop_bound({1, {{}, {}, {8, 4, 5, 1}}}), std::invalid_argument);
  EXPECT_THROW(flop_bound({1, {{}, {}, {8, 4, 1, 3}}}), std::invalid_argument);
  EXPECT_THROW(flop_bound({}), std::invalid_argument);
  EXPECT_THROW(count_tiles({1, {{}, {}, {8, 4, 1, 1}}}, {{1, 1, 0}, {1, 1, 1}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace tileattn::planner
