#include "cpu/softmax/grid_cut.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <vector>

#include "planner/spec_cache.h"

namespace tileattn::cpu {
namespace {

constexpr int kRank = NeighborhoodSpec::kMaxRank;
using BoxSize = std::array<int, kRank>;
using Part = DilationGroup<kRank>;

int volume(const BoxSize& box) { return box[0] * box[1] * box[2]; }
std::int64_t tokens(const Part& part) {
  return std::int64_t{part.length[0]} * part.length[1] * part.length[2];
}

/// Tokens of a part, if there are as many: enough for a few query tiles, and their keys and
/// values in fp32 fit into the second level cache.
constexpr int kLeastPart = 256;

/// Positions of the axis, in runs of at least `least`, whose windows stay within the run.
std::vector<Range> separate_runs(const NeighborhoodAxis& axis, int least) {
  std::vector<Range> runs;
  int begin = 0;
  // Only windows as long as the stride leave gaps, and only between its runs of queries.
  while (axis.window == axis.stride && begin + least < axis.length) {
    int end = ceil_div(begin + least + axis.offset, axis.stride) * axis.stride - axis.offset;
    while (end < axis.length && (axis.keys_of(end - 1).end > end || axis.keys_of(end).begin < end))
      end += axis.stride;
    if (end >= axis.length) break;
    runs.push_back({begin, end});
    begin = end;
  }
  runs.push_back({begin, axis.length});
  return runs;
}

void add_parts(const NeighborhoodSpec& spec, const Part& group, std::vector<Part>& parts) {
  const auto pattern = Neighborhood<kRank>::make(spec, group);
  std::vector<Range> runs[kRank];
  // Small parts are joined along the last axis first, where rows are neighbours in memory.
  auto smallest = [](const NeighborhoodAxis& axis) {
    return axis.window == axis.stride ? std::min(axis.stride, axis.length) : axis.length;
  };
  std::int64_t size = 1;
  for (const NeighborhoodAxis& axis : pattern.axis) size *= smallest(axis);
  for (int a = kRank - 1; a >= 0; --a) {
    const std::int64_t others = size / smallest(pattern.axis[a]);
    runs[a] = separate_runs(pattern.axis[a], static_cast<int>((kLeastPart + others - 1) / others));
    size = others * runs[a][0].size();
  }
  for (Range x : runs[0])
    for (Range y : runs[1])
      for (Range z : runs[2]) {
        const Range along[kRank] = {x, y, z};
        Part part = group;
        for (int a = 0; a < kRank; ++a) {
          part.first[a] += along[a].begin * spec.axis[a].dilation;
          part.length[a] = along[a].size();
          if (along[a].begin > 0) part.offset[a] = 0;
        }
        parts.push_back(part);
      }
}

/// What a visited block costs beside its products, in keys that a group of queries could be
/// multiplied with instead (found by timing cuts of several problems).
constexpr double kBlockCost = 16.0;
/// The same for a key of a query tile, which has to come from the second level cache.
constexpr double kTileKeyCost = 1.0;

/// A query tile: its box, and the boxes around its groups of rows.
struct QueryTile {
  BoxSize size;
  std::vector<Box<kRank>> groups;

  explicit QueryTile(const BoxSize& size) : size(size) {
    Box<kRank> tile;
    for (int a = 0; a < kRank; ++a) tile.axis[a] = {0, size[a]};
    for (int row = 0; row < tile.size(); ++row) {
      const Coordinates<kRank> at = tile[row];
      if (row % kGroup == 0) groups.emplace_back();
      for (int a = 0; a < kRank; ++a) {
        Range& range = groups.back().axis[a];
        range = row % kGroup == 0
                    ? Range{at.at[a], at.at[a] + 1}
                    : Range{std::min(range.begin, at.at[a]), std::max(range.end, at.at[a] + 1)};
      }
    }
  }
};

/// Keys and panels that the tiles of one axis visit.
struct Visits {
  double keys = 0, panels = 0;
};

class CostModel {
 public:
  /// The largest part stands for all.
  explicit CostModel(const NeighborhoodSpec& spec)
      : pattern_(Neighborhood<kRank>::make(spec, largest(parts_of(spec)))) {}

  const NeighborhoodAxis& axis(int a) const { return pattern_.axis[a]; }

  /// Of all query tiles, in keys that a group of queries is multiplied with.
  double cost(const QueryTile& tile, const BoxSize& panel) {
    const double padding = double(round_up(volume(panel), kColumnGranule)) / volume(panel);
    const Box<kRank> whole = {{{0, tile.size[0]}, {0, tile.size[1]}, {0, tile.size[2]}}};
    double total = kTileKeyCost * visits(tile.size, panel, whole).keys;
    for (const Box<kRank>& group : tile.groups) {
      const Visits seen = visits(tile.size, panel, group);
      total += seen.keys * padding + kBlockCost * seen.panels;
    }
    return total;
  }

  /// Query tiles and key tiles that meet, if a key tile has so many panels along each axis.
  double pairs(const GridCut& cut, const BoxSize& panels) {
    double met = 1;
    for (int a = 0; a < kRank; ++a)
      met *= visits_along(a, cut.query_box[a], panels[a] * cut.panel_box[a], {0, cut.query_box[a]})
                 .panels;
    return met;
  }

 private:
  /// Of the part `rows` of every query tile.
  Visits visits(const BoxSize& queries, const BoxSize& panel, const Box<kRank>& rows) {
    Visits all{1, 1};
    for (int a = 0; a < kRank; ++a) {
      const Visits along = visits_along(a, queries[a], panel[a], rows.axis[a]);
      all.keys *= along.keys;
      all.panels *= along.panels;
    }
    return all;
  }

  Visits visits_along(int a, int query_box, int panel, Range rows) {
    static_assert(kTile.queries < 128 && kTile.keys < 512);
    auto [known, is_new] = known_.try_emplace(
        (((std::int64_t{a} * 128 + query_box) * 512 + panel) * 128 + rows.begin) * 128 + rows.end);
    if (!is_new) return known->second;
    constexpr int kSample = 256;  // tiles of a long axis
    const NeighborhoodAxis& axis = pattern_.axis[a];
    const int tiles = ceil_div(axis.length, query_box), step = ceil_div(tiles, kSample);
    Visits sum;
    for (int t = 0; t < tiles; t += step) {
      int first = t * query_box + rows.begin;
      int last = std::min(t * query_box + rows.end, axis.length) - 1;
      if (first > last) continue;
      const Range touched = tiles_of(axis.keys_of(first).begin, axis.keys_of(last).end, panel);
      sum.panels += step * touched.size();
      sum.keys += step * (std::min(touched.end * panel, axis.length) - touched.begin * panel);
    }
    return known->second = sum;
  }

  static Part largest(const std::vector<Part>& parts) {
    return *std::max_element(parts.begin(), parts.end(),
                             [](auto& a, auto& b) { return tokens(a) < tokens(b); });
  }

  Neighborhood<kRank> pattern_;
  std::unordered_map<std::int64_t, Visits> known_;
};

/// Boxes of at most `most` tokens, and of not much fewer where the grid has as many.
std::vector<BoxSize> boxes(const CostModel& model, int most, std::vector<int> sizes) {
  std::vector<int> along[kRank];
  std::int64_t tokens = 1;
  for (int a = 0; a < kRank; ++a) {
    const NeighborhoodAxis& axis = model.axis(a);
    for (int size : sizes) along[a].push_back(std::min(size, axis.length));
    for (int size : {axis.stride, axis.window, axis.length, ceil_div(axis.length, 2)})
      if (size <= most) along[a].push_back(std::min(size, axis.length));
    std::sort(along[a].begin(), along[a].end());
    along[a].erase(std::unique(along[a].begin(), along[a].end()), along[a].end());
    tokens = std::min<std::int64_t>(most, tokens * axis.length);
  }
  std::vector<BoxSize> found;
  for (int x : along[0])
    for (int y : along[1])
      for (int z : along[2])
        if (x * y * z <= most && 3 * x * y * z >= 2 * tokens) found.push_back({x, y, z});
  if (found.empty()) found.push_back({1, 1, std::min(most, model.axis(kRank - 1).length)});
  return found;
}

/// Joins panels to key tiles that meet as few query tiles as possible: the backward loads a query
/// tile for each.
void join_panels(CostModel& model, GridCut& cut) {
  double fewest = -1;
  for (int x = 1; x <= kPanelsPerTile; ++x)
    for (int y = 1; x * y <= kPanelsPerTile; ++y)
      for (int z = 1; x * y * z <= kPanelsPerTile; ++z) {
        const double met = model.pairs(cut, {x, y, z});
        if (fewest >= 0 && met >= fewest) continue;
        fewest = met;
        cut.panels_per_tile[0] = x;
        cut.panels_per_tile[1] = y;
        cut.panels_per_tile[2] = z;
      }
}

GridCut cheapest_cut(const NeighborhoodSpec& spec) {
  CostModel model(spec);
  const auto panels = boxes(model, kPanel, {1, 2, 4, 8, 16, 32, 64});
  GridCut best{};
  double least = -1;
  for (const BoxSize& size : boxes(model, kTile.queries, {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 96})) {
    const QueryTile tile(size);
    for (const BoxSize& panel : panels) {
      const double cost = model.cost(tile, panel);
      if (least >= 0 && cost >= least) continue;
      least = cost;
      std::copy(size.begin(), size.end(), best.query_box);
      std::copy(panel.begin(), panel.end(), best.panel_box);
    }
  }
  join_panels(model, best);
  return best;
}

}  // namespace

std::vector<DilationGroup<3>> parts_of(const NeighborhoodSpec& spec) {
  std::vector<Part> parts;
  for (int g = 0; g < spec.groups(); ++g) add_parts(spec, Part::make(spec, g), parts);
  return parts;
}

GridCut choose_cut(const NeighborhoodSpec& spec) {
  static SpecCache<GridCut> known;
  return known.get(spec, {}, [&] { return cheapest_cut(spec); });
}

}  // namespace tileattn::cpu
