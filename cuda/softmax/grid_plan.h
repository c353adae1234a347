// How a grid of tokens is cut into tiles: boxes whose sides are powers of two.
#pragma once

#include "tileattn/pattern/neighborhood.h"

namespace tileattn::cuda {

/// Boxes of queries, or of keys.
struct BoxSide {
  int bits[3];   // log2 of the box's sides
  int along[3];  // boxes along each axis, of the largest dilation group

  TILEATTN_HOST_DEVICE int count() const { return along[0] * along[1] * along[2]; }
};

/// The token of a box that a row of its tile is: the last axis is the lowest bits of `row`.
TILEATTN_HOST_DEVICE Coordinates<3> place_in_box(int row, const int (&bits)[3]) {
  return {{row >> (bits[1] + bits[2]), (row >> bits[2]) & ((1 << bits[1]) - 1),
           row & ((1 << bits[2]) - 1)}};
}

struct GridPlan {
  BoxSide queries, keys;
  BoxBits<3> word;  // the first keys of a box at the origin, as many as a word has bits
};

/// The boxes of `queries` and `keys` tokens (powers of two) that the planner puts first.
GridPlan plan_grid(const NeighborhoodSpec& spec, int queries, int keys);

}  // namespace tileattn::cuda
