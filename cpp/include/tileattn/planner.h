// What a neighborhood can save, and which tiles save most of it.
//
// Attention over all keys costs tokens^2; a window leaves only the visible pairs. Kernels work
// in tiles, so that what they save is bounded by the tiles that hold something visible.
#pragma once

#include <cstdint>
#include <vector>

#include "tileattn/pattern/neighborhood.h"

namespace tileattn::planner {

/// Boxes of queries and of keys; as in NeighborhoodSpec, lower ranks leave the first axes at 1.
struct TileShape {
  int queries[NeighborhoodSpec::kMaxRank] = {1, 1, 1};
  int keys[NeighborhoodSpec::kMaxRank] = {1, 1, 1};
};

/// Pairs of a query tile and a key tile, over all dilation groups.
struct TileCounts {
  TileShape shape;
  std::int64_t all = 0;      // what attention over all keys would visit
  std::int64_t visited = 0;  // with something visible
  std::int64_t full = 0;     // of these, with nothing hidden and no key beyond the grid

  /// How many times fewer tiles than attention over all keys: the tile-wise bound.
  double tile_bound() const { return visited > 0 ? double(all) / double(visited) : 1.0; }
  double partial_share() const {
    return visited > 0 ? double(visited - full) / double(visited) : 0.0;
  }
  /// No work is wasted: every visited tile is full.
  bool perfectly_block_sparse() const { return visited == full; }
};

/// The FLOP-wise bound: tokens by the mean number of keys that a query sees.
TILEATTN_API double flop_bound(const NeighborhoodSpec& spec);

/// Counts the tiles as the kernels walk them.
TILEATTN_API TileCounts count_tiles(const NeighborhoodSpec& spec, const TileShape& shape);

/// All shapes of exactly `queries` and `keys` tokens that are no longer than an axis (rounded
/// up to a power of two), best first: fewest visited tiles, then fewest partial ones.
TILEATTN_API std::vector<TileCounts> rank_tiles(const NeighborhoodSpec& spec, int queries,
                                                int keys);

/// Throws std::invalid_argument with the axis and the rule if the spec or the shape is none.
TILEATTN_API void check(const NeighborhoodSpec& spec);
TILEATTN_API void check(const NeighborhoodSpec& spec, const TileShape& shape);

}  // namespace tileattn::planner
