#include "tileattn/planner.h"

#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <vector>

#include "planner.h"

namespace nb = nanobind;

namespace tileattn {
namespace {

using Ints = std::vector<int>;
constexpr int kMaxRank = NeighborhoodSpec::kMaxRank;

NeighborhoodSpec spec_of(const Ints& grid, const Ints& window, const Ints& stride,
                         const Ints& dilation, const Ints& causal) {
  NeighborhoodSpec spec;
  spec.rank = static_cast<int>(grid.size());
  if (spec.rank < 1 || spec.rank > kMaxRank)
    throw std::invalid_argument("a grid has one to three axes");
  for (const Ints* values : {&window, &stride, &dilation, &causal})
    if (values->size() != grid.size())
      throw std::invalid_argument("window, stride, dilation and causal need one entry per axis");
  for (int a = 0; a < spec.rank; ++a)
    spec.axis[kMaxRank - spec.rank + a] = {grid[a],     window[a], stride[a],
                                           dilation[a], 0,         causal[a] != 0};
  planner::check(spec);
  return spec;
}

planner::TileShape shape_of(const Ints& query_tile, const Ints& key_tile, int rank) {
  planner::TileShape shape;
  if (static_cast<int>(query_tile.size()) != rank || query_tile.size() != key_tile.size())
    throw std::invalid_argument("tiles need one entry per axis");
  for (int a = 0; a < rank; ++a) {
    shape.queries[kMaxRank - rank + a] = query_tile[a];
    shape.keys[kMaxRank - rank + a] = key_tile[a];
  }
  return shape;
}

nb::dict as_dict(const planner::TileCounts& counts, int rank) {
  auto last_axes = [rank](const int (&box)[kMaxRank]) {
    nb::list sizes;
    for (int a = kMaxRank - rank; a < kMaxRank; ++a) sizes.append(box[a]);
    return nb::tuple(sizes);
  };
  nb::dict row;
  row["query_tile"] = last_axes(counts.shape.queries);
  row["key_tile"] = last_axes(counts.shape.keys);
  row["all"] = counts.all;
  row["visited"] = counts.visited;
  row["full"] = counts.full;
  return row;
}

double flop_bound(const Ints& grid, const Ints& window, const Ints& stride, const Ints& dilation,
                  const Ints& causal) {
  return planner::flop_bound(spec_of(grid, window, stride, dilation, causal));
}

nb::dict count_tiles(const Ints& grid, const Ints& window, const Ints& stride, const Ints& dilation,
                     const Ints& causal, const Ints& query_tile, const Ints& key_tile) {
  const NeighborhoodSpec spec = spec_of(grid, window, stride, dilation, causal);
  return as_dict(planner::count_tiles(spec, shape_of(query_tile, key_tile, spec.rank)), spec.rank);
}

nb::list rank_tiles(const Ints& grid, const Ints& window, const Ints& stride, const Ints& dilation,
                    const Ints& causal, int queries, int keys) {
  const NeighborhoodSpec spec = spec_of(grid, window, stride, dilation, causal);
  nb::list rows;
  for (const auto& counts : planner::rank_tiles(spec, queries, keys))
    rows.append(as_dict(counts, spec.rank));
  return rows;
}

}  // namespace

void bind_planner(nb::module_& module) {
  module.def("flop_bound", &flop_bound, nb::arg("grid"), nb::arg("window"), nb::arg("stride"),
             nb::arg("dilation"), nb::arg("causal"),
             "See tileattn.planner.flop_bound; every argument has one entry per axis.");
  module.def("count_tiles", &count_tiles, nb::arg("grid"), nb::arg("window"), nb::arg("stride"),
             nb::arg("dilation"), nb::arg("causal"), nb::arg("query_tile"), nb::arg("key_tile"),
             "A dict: query_tile, key_tile, all, visited, full (tile pairs).");
  module.def("rank_tiles", &rank_tiles, nb::arg("grid"), nb::arg("window"), nb::arg("stride"),
             nb::arg("dilation"), nb::arg("causal"), nb::arg("queries"), nb::arg("keys"),
             "Such dicts for every shape of so many queries and keys, best first.");
}

}  // namespace tileattn
