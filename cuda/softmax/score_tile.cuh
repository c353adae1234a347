// Which elements of a tile of scores a thread has.
#pragma once

#include "common/tile.cuh"

namespace tileattn::cuda {

/// The tile coordinates of a thread's scores, by_rows.
template <class Config>
CUTE_DEVICE auto score_coordinates(int thread) {
  return by_rows(typename Config::ScoreMma{}.get_slice(thread).partition_C(
      make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kKeys>>{})));
}

}  // namespace tileattn::cuda
