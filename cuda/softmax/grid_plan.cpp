#include "grid_plan.h"

#include "planner/spec_cache.h"
#include "tileattn/planner.h"

namespace tileattn::cuda {
namespace {

int log2_of(int n) {
  int bits = 0;
  while (1 << bits < n) ++bits;
  return bits;
}

BoxSide side_of(const NeighborhoodSpec& spec, const int (&box)[3]) {
  BoxSide side{};
  for (int a = 0; a < 3; ++a) {
    const int longest = ceil_div(spec.axis[a].length, spec.axis[a].dilation);
    side.bits[a] = log2_of(box[a]);
    side.along[a] = ceil_div(longest, box[a]);
  }
  return side;
}

/// As many keys of the box as fit a word: its last rows in memory order, cut off in front.
BoxBits<3> word_of(const int (&key_box)[3]) {
  int room = 64;
  Box<3> box{};
  for (int a = 2; a >= 0; --a) {
    box.axis[a] = {0, imin(key_box[a], room)};
    room /= box.axis[a].end;
  }
  return BoxBits<3>::make(box);
}

}  // namespace

GridPlan plan_grid(const NeighborhoodSpec& spec, int queries, int keys) {
  static SpecCache<GridPlan> known;
  return known.get(spec, {queries, keys}, [&] {
    const planner::TileShape best = planner::rank_tiles(spec, queries, keys).front().shape;
    return GridPlan{side_of(spec, best.queries), side_of(spec, best.keys), word_of(best.keys)};
  });
}

}  // namespace tileattn::cuda
