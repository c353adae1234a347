// The tile table of the sm_80 forward.
#pragma once

#include "tile.cuh"

namespace tileattn::cuda {

/// Warps stand one below the other, so that a row of scores belongs to one warp
/// and the weights can stay in registers.
template <class Element_, int kDim_, int kQueries_, int kKeys_, int kStages_, int kWarps_>
struct ForwardConfig {
  using Element = Element_;
  static constexpr int kDim = kDim_;  // of q, k, v and out, zero-padded in shared memory
  static constexpr int kQueries = kQueries_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kStages = kStages_;  // of K and V each
  static constexpr int kThreads = kWarps_ * 32;
  static constexpr Tiling kTiling{kQueries, kKeys};
  static constexpr bool kExactQuotient = true;  // of scores; it keeps head dim 256 from spilling

  using QuerySmem = SwizzledSmem<kQueries, kDim>;
  using KeySmem = SwizzledSmem<kKeys, kDim>;
  using ScoreMma = TiledMMA<MmaAtom80<Element>, Layout<Shape<Int<kWarps_>, _1, _1>>,
                            Tile<Int<16 * kWarps_>, _16, _16>>;
  using OutMma = ScoreMma;

  static_assert(kQueries % (16 * kWarps_) == 0 && kKeys % 16 == 0 && kDim % 32 == 0);
};

/// Every tile fits into the 99 KiB of sm_86 and sm_89.
template <class Element, int kDim>
struct ForwardTile {
  static constexpr auto choose() {
    if constexpr (kDim <= 64) return ForwardConfig<Element, kDim, 128, 64, 2, 4>{};
    else if constexpr (kDim == 96) return ForwardConfig<Element, kDim, 128, 32, 2, 4>{};
    else if constexpr (kDim == 128) return ForwardConfig<Element, kDim, 128, 64, 2, 8>{};
    else return ForwardConfig<Element, kDim, 64, 64, 1, 4>{};
  }
  using type = decltype(choose());
};

}  // namespace tileattn::cuda
