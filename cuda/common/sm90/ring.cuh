// Rings of stages between a side that fills them and a side that uses them up.
#pragma once

#include "barrier.cuh"

namespace tileattn::cuda {

/// Where a side of a ring is after `count` stages.
template <int kStages>
struct RingPlace {
  static_assert((kStages & (kStages - 1)) == 0);
  unsigned count = 0;

  CUTE_DEVICE int stage() const { return int(count % kStages); }
  CUTE_DEVICE unsigned phase() const { return count / kStages % 2; }
  CUTE_DEVICE RingPlace operator++(int) { return {count++}; }
};

/// Barriers of a ring of stages.
template <int kStages>
struct Ring {
  using Place = RingPlace<kStages>;
  Barrier full[kStages];
  Barrier used_up[kStages];

  CUTE_DEVICE void init(int fillers, int users) {
    CUTE_UNROLL
    for (int n = 0; n < kStages; ++n) full[n].init(fillers), used_up[n].init(users);
  }
  CUTE_DEVICE void wait_until_full(Place place) { full[place.stage()].wait(place.phase()); }
  CUTE_DEVICE void wait_until_used_up(Place place) {
    used_up[place.stage()].wait(place.phase() ^ 1);  // a fresh ring is
  }
};

}  // namespace tileattn::cuda
