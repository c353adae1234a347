// The parts of a grid are grids of their own: against the pattern of the whole grid.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/softmax/grid_cut.h"

namespace tileattn::cpu {
namespace {

using Part = DilationGroup<3>;

NeighborhoodSpec one_axis(int length, int window, int stride, int dilation = 1,
                          bool causal = false) {
  return {1, {{}, {}, {length, window, stride, dilation, 0, causal}}};
}

/// For each token of the grid, the part that holds it and its place in there.
struct Place {
  int part;
  Coordinates<3> at;
};
std::map<std::int64_t, Place> places(const NeighborhoodSpec& spec, const std::vector<Part>& parts) {
  std::map<std::int64_t, Place> found;
  const std::int64_t strides[3] = {std::int64_t{spec.axis[1].length} * spec.axis[2].length,
                                   spec.axis[2].length, 1};
  for (std::size_t n = 0; n < parts.size(); ++n) {
    const auto number = TokenMap<3>::make(spec, parts[n], strides);
    const int* length = parts[n].length;
    const Box<3> all = {{{0, length[0]}, {0, length[1]}, {0, length[2]}}};
    for (int row = 0; row < all.size(); ++row) {
      const bool is_new = found.insert({number(all[row]), {static_cast<int>(n), all[row]}}).second;
      EXPECT_TRUE(is_new) << "a token is in two parts";
    }
  }
  return found;
}

void expect_same_pattern(const NeighborhoodSpec& spec) {
  const std::vector<Part> parts = parts_of(spec);
  const auto place = places(spec, parts);
  std::int64_t tokens = 1;
  for (const auto& axis : spec.axis) tokens *= axis.length;
  ASSERT_EQ(static_cast<std::int64_t>(place.size()), tokens) << "a token is in no part";
  for (int g = 0; g < spec.groups(); ++g) {
    const auto group = Part::make(spec, g);
    const auto whole = Neighborhood<3>::make(spec, group);
    const auto number = TokenMap<3>::make(spec, group,
                                          {std::int64_t{spec.axis[1].length} * spec.axis[2].length,
                                           std::int64_t{spec.axis[2].length}, 1});
    const Box<3> all = {{{0, group.length[0]}, {0, group.length[1]}, {0, group.length[2]}}};
    for (int i = 0; i < all.size(); ++i)
      for (int j = 0; j < all.size(); ++j) {
        const Place query = place.at(number(all[i])), key = place.at(number(all[j]));
        const bool seen = query.part == key.part &&
                          Neighborhood<3>::make(spec, parts[query.part]).visible(query.at, key.at);
        ASSERT_EQ(whole.visible(all[i], all[j]), seen) << "query " << i << ", key " << j;
      }
  }
}

TEST(GridCut, PartsHaveThePatternOfTheGrid) {
  const NeighborhoodSpec specs[] = {
      one_axis(700, 130, 130),
      one_axis(600, 90, 90),
      one_axis(600, 90, 90, 1, true),
      one_axis(800, 300, 300, 2),
      one_axis(1201, 100, 100, 2),
      one_axis(600, 13, 13),
      one_axis(600, 13, 4),
      {1, {{}, {}, {600, 90, 90, 1, 40}}, true},
      {2, {{}, {24, 8, 8, 1}, {36, 6, 6, 2}}},
      {2, {{}, {30, 16, 16, 1, 0, true}, {32, 16, 16, 1}}},
      {2, {{}, {28, 8, 8, 1, 4}, {28, 8, 8, 1, 4}}, true},
      {3, {{4, 2, 2, 1}, {12, 6, 6, 1}, {24, 12, 12, 1}}},
      {3, {{4, 2, 1, 1}, {12, 6, 6, 1}, {24, 12, 12, 1}}},
  };
  for (const NeighborhoodSpec& spec : specs) {
    SCOPED_TRACE("rank " + std::to_string(spec.rank) + ", last axis of " +
                 std::to_string(spec.axis[2].length) + ", window " +
                 std::to_string(spec.axis[2].window));
    expect_same_pattern(spec);
  }
}

TEST(GridCut, BlocksArePartsUnlessTheyAreSmall) {
  EXPECT_EQ(parts_of(one_axis(4096, 256, 256)).size(), 16u);
  EXPECT_EQ(parts_of({2, {{}, {64, 16, 16}, {64, 16, 16}}}).size(), 16u);
  EXPECT_EQ(parts_of({3, {{16, 8, 8}, {32, 16, 16}, {32, 16, 16}}}).size(), 8u);
  EXPECT_EQ(parts_of(one_axis(4096, 16, 16)).size(), 16u);               // of 16 blocks
  EXPECT_EQ(parts_of({2, {{}, {64, 4, 4}, {64, 4, 4}}}).size(), 16u);    // rows of blocks
  EXPECT_EQ(parts_of(one_axis(4096, 256, 256, 2)).size(), 16u);          // 8 of each group
  EXPECT_EQ(parts_of(one_axis(4096, 256, 128)).size(), 1u);              // windows overlap
  EXPECT_EQ(parts_of({2, {{}, {64, 16, 1}, {64, 16, 16}}}).size(), 4u);  // on one axis
}

}  // namespace
}  // namespace tileattn::cpu
