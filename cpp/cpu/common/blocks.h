// The blocks that products and their operands are cut into, in every family.
#pragma once

#include "tileattn/pattern/pattern.h"

namespace tileattn::cpu {

// A query tile's scores against a key tile fit into the second level cache, a panel of keys
// into the first. Groups and panels are also the blocks in which hidden parts are skipped.
constexpr int kGroup = 6;   // queries, the rows of the micro-kernel
constexpr int kPanel = 64;  // keys
constexpr int kGroupsPerTile = 16;
constexpr int kPanelsPerTile = 6;
constexpr Tiling kTile{kGroup * kGroupsPerTile, kPanel * kPanelsPerTile};
constexpr Tiling kBlock{kGroup, kPanel};
constexpr int kMaxDim = 256;        // of a head, in softmax attention
constexpr int kMaxColumns = 1040;   // of a matrix that a product adds to
constexpr int kColumnGranule = 16;  // floats: rows in scratch are padded to whole vectors

TILEATTN_HOST_DEVICE constexpr int round_up(int n, int granule) {
  return (n + granule - 1) / granule * granule;
}

}  // namespace tileattn::cpu
