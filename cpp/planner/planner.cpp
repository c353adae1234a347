#include "tileattn/planner.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace tileattn::planner {
namespace {

constexpr int kRank = NeighborhoodSpec::kMaxRank;

/// What one axis contributes. A box of tiles is visited where each axis visits it, so that
/// the counts of the whole grid are the products of those of the axes.
struct AxisCounts {
  std::int64_t query_tiles = 0, key_tiles = 0, visited = 0, full = 0;
};

NeighborhoodAxis group_axis(const NeighborhoodSpec& spec, int a, int group) {
  const auto& axis = spec.axis[a];
  return {ceil_div(axis.length - group, axis.dilation),
          axis.window,
          axis.stride,
          axis.offset,
          axis.causal,
          spec.clip};
}

/// Over the dilation groups of the axis.
AxisCounts count_axis(const NeighborhoodSpec& spec, int a, int query_box, int key_box) {
  AxisCounts counts;
  for (int group = 0; group < spec.axis[a].dilation; ++group) {
    const NeighborhoodAxis axis = group_axis(spec, a, group);
    const int query_tiles = ceil_div(axis.length, query_box);
    counts.query_tiles += query_tiles;
    counts.key_tiles += ceil_div(axis.length, key_box);
    for (int t = 0; t < query_tiles; ++t) {
      const Range queries = tokens_of(t, query_box, axis.length);
      const Range first = axis.keys_of(queries.begin), last = axis.keys_of(queries.end - 1);
      counts.visited += tiles_of(first.begin, last.end, key_box).size();
      // Whole tiles between the latest start and the earliest end.
      counts.full += std::max(0, first.end / key_box - ceil_div(last.begin, key_box));
    }
  }
  return counts;
}

/// All ways to write `volume` as a product over the last `rank` axes of factors that an axis
/// has room for.
void for_each_box(const NeighborhoodSpec& spec, int axis, int volume, int (&box)[kRank],
                  std::vector<std::vector<int>>& found) {
  if (axis == kRank) {
    if (volume == 1) found.push_back({box, box + kRank});
    return;
  }
  const int length = ceil_div(spec.axis[axis].length, spec.axis[axis].dilation);
  int room = 1;
  while (room < length) room *= 2;
  for (int n = 1; n <= std::min(volume, room); ++n) {
    if (volume % n != 0) continue;
    box[axis] = n;
    for_each_box(spec, axis + 1, volume / n, box, found);
  }
  box[axis] = 1;
}

std::vector<std::vector<int>> boxes_of(const NeighborhoodSpec& spec, int volume) {
  int box[kRank] = {1, 1, 1};
  std::vector<std::vector<int>> found;
  for_each_box(spec, kRank - spec.rank, volume, box, found);
  if (found.empty()) {  // the grid is smaller than a tile: all of it, along the last axis
    box[kRank - 1] = volume;
    found.push_back({box, box + kRank});
  }
  return found;
}

void require(bool right, const std::string& message) {
  if (!right) throw std::invalid_argument(message);
}

}  // namespace

void check(const NeighborhoodSpec& spec) {
  constexpr int kLimit = 1 << 29;  // room for arithmetic on positions, as in the kernels
  require(spec.rank >= 1 && spec.rank <= kRank, "a grid has one to three axes");
  std::int64_t tokens = 1;
  for (int a = 0; a < kRank; ++a) {
    const auto& axis = spec.axis[a];
    const std::string where = " on axis " + std::to_string(a - (kRank - spec.rank));
    auto is = [&](const char* name, int value) {
      return std::string(name) + " is " + std::to_string(value) + where;
    };
    require(axis.length >= 1 && axis.length < kLimit,
            is("length", axis.length) + "; it must be at least 1 and below 2**29");
    tokens *= axis.length;
    require(tokens < kLimit, "the grid has too many tokens; allowed: below 2**29");
    require(axis.window >= 1 && axis.window < kLimit,
            is("window", axis.window) + "; it must be at least 1 and below 2**29");
    require(axis.stride >= 1 && axis.stride <= axis.window,
            is("stride", axis.stride) + "; it must be at least 1 and at most the window, " +
                std::to_string(axis.window));
    require(axis.dilation >= 1 && axis.dilation <= axis.length,
            is("dilation", axis.dilation) + "; it must be at least 1 and at most the length");
    require(spec.clip || std::int64_t{axis.window} * axis.dilation <= axis.length,
            is("window", axis.window) + " with dilation " + std::to_string(axis.dilation) +
                "; window * dilation must be at most the length of the axis, " +
                std::to_string(axis.length));
    require(axis.offset >= 0 && axis.offset < axis.stride,
            is("offset", axis.offset) + "; it must be at least 0 and below the stride");
  }
}

void check(const NeighborhoodSpec& spec, const TileShape& shape) {
  check(spec);
  for (int a = 0; a < kRank; ++a)
    require(shape.queries[a] >= 1 && shape.keys[a] >= 1 && shape.queries[a] < (1 << 29) &&
                shape.keys[a] < (1 << 29),
            "a tile has at least one token on each axis, and fewer than 2**29");
}

double flop_bound(const NeighborhoodSpec& spec) {
  check(spec);
  double bound = 1;
  for (int a = 0; a < kRank; ++a) {
    double visible = 0;
    for (int group = 0; group < spec.axis[a].dilation; ++group) {
      const NeighborhoodAxis axis = group_axis(spec, a, group);
      for (int i = 0; i < axis.length; ++i) visible += axis.keys_of(i).size();
    }
    bound *= double(spec.axis[a].length) * spec.axis[a].length / visible;
  }
  return bound;
}

TileCounts count_tiles(const NeighborhoodSpec& spec, const TileShape& shape) {
  check(spec, shape);
  TileCounts counts;
  counts.shape = shape;
  counts.visited = counts.full = 1;
  std::int64_t query_tiles = 1, key_tiles = 1;
  for (int a = 0; a < kRank; ++a) {
    const AxisCounts axis = count_axis(spec, a, shape.queries[a], shape.keys[a]);
    query_tiles *= axis.query_tiles;
    key_tiles *= axis.key_tiles;
    counts.visited *= axis.visited;
    counts.full *= axis.full;
  }
  counts.all = query_tiles * key_tiles;
  return counts;
}

std::vector<TileCounts> rank_tiles(const NeighborhoodSpec& spec, int queries, int keys) {
  check(spec);
  require(queries >= 1 && keys >= 1 && queries <= 4096 && keys <= 4096,
          "a tile has at least 1 and at most 4096 tokens");
  std::vector<TileCounts> ranked;
  for (const std::vector<int>& query_box : boxes_of(spec, queries))
    for (const std::vector<int>& key_box : boxes_of(spec, keys)) {
      TileShape shape;
      std::copy(query_box.begin(), query_box.end(), shape.queries);
      std::copy(key_box.begin(), key_box.end(), shape.keys);
      ranked.push_back(count_tiles(spec, shape));
    }
  std::stable_sort(ranked.begin(), ranked.end(), [](const TileCounts& a, const TileCounts& b) {
    return a.visited != b.visited ? a.visited < b.visited : a.full > b.full;
  });
  return ranked;
}

}  // namespace tileattn::planner
