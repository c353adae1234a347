// The tile tables of sm_80: tile shapes, shared-memory layouts and matrix-multiply partitions.
#pragma once

#include "common/kernel_table.h"
#include "common/sm80/mma.cuh"
#include "tileattn/pattern/neighborhood.h"

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

/// Constants of a backward kernel that works on tiles of kQueries x kKeys scores, whose
/// streamed operands are kStages deep.
template <class Element_, int kDim_, int kQueries_, int kKeys_, int kStages_, int kWarps_>
struct BackwardConfig {
  using Element = Element_;
  static constexpr int kDim = kDim_;  // of q, k, v and out, zero-padded in shared memory
  static constexpr int kQueries = kQueries_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = kWarps_ * 32;
  static constexpr Tiling kTiling{kQueries, kKeys};

  using QuerySmem = SwizzledSmem<kQueries, kDim>;
  using KeySmem = SwizzledSmem<kKeys, kDim>;
  using ScoreSmem = SwizzledSmem<kQueries, kKeys>;

  template <int WarpsM, int WarpsN>
  using Mma = TiledMMA<MmaAtom80<Element>, Layout<Shape<Int<WarpsM>, Int<WarpsN>, _1>>,
                       Tile<Int<16 * WarpsM>, Int<16 * WarpsN>, _16>>;

  // Warps are laid out so that a warp's part of each product is nearly square,
  // which reads the least shared memory per multiplication.
  static constexpr int kScoreWarpsM = 2;
  static constexpr int kQueryWarpsN = kDim % 64 == 0 ? kWarps_ / 2 : 2;
  static constexpr int kKeyWarpsN = kKeys <= 64 ? kQueryWarpsN : 2;
  using ScoreMma = Mma<kScoreWarpsM, kWarps_ / kScoreWarpsM>;      // S and dP
  using KeyGradMma = Mma<kWarps_ / kKeyWarpsN, kKeyWarpsN>;        // dK and dV
  using QueryGradMma = Mma<kWarps_ / kQueryWarpsN, kQueryWarpsN>;  // dQ

  static_assert(kStages == 1 || kStages == 2);
  static_assert(kQueries <= kThreads && kKeys <= kThreads);  // a thread a row, a column
  static_assert(kQueries % (16 * kScoreWarpsM) == 0);
  static_assert(kKeys % (16 * kWarps_ / kScoreWarpsM) == 0);
  static_assert(kKeys % (16 * kWarps_ / kKeyWarpsN) == 0 && kDim % (16 * kKeyWarpsN) == 0);
  static_assert(kQueries % (16 * kWarps_ / kQueryWarpsN) == 0 && kDim % (16 * kQueryWarpsN) == 0);
};

struct BackwardTile {
  int queries, keys, stages, warps;
};

/// Of the key-major kernel: K and V stay, Q and dO are streamed. The masks of grids take registers.
constexpr BackwardTile key_major_tile(int dim, SharedBudget budget, bool grid) {
  const bool small = budget == SharedBudget::k99KiB;
  switch (dim) {
    case 32:
    case 64: return {64, 128, 2, 8};  // one row of kernels.cmake for all GPUs
    case 96: return {64, small ? 64 : 128, 2, 8};
    case 128: return small ? BackwardTile{64, 64, 1, 8} : BackwardTile{64, grid ? 64 : 128, 2, 8};
    case 192: return small ? BackwardTile{32, 64, 1, 8} : BackwardTile{64, 64, 2, 8};
    default: return small ? BackwardTile{32, 32, 1, 4} : BackwardTile{64, 64, 1, 8};
  }
}

/// Of the query-major kernel: Q and dO stay, K and V are streamed. Larger tiles spill.
constexpr BackwardTile query_major_tile(int dim, SharedBudget budget, bool grid) {
  const bool small = budget == SharedBudget::k99KiB;
  return dim <= (small ? 96 : 128) ? BackwardTile{64, 64, 2, 8} : key_major_tile(dim, budget, grid);
}

template <class Element, int kDim, SharedBudget kBudget, class Pattern>
struct BackwardConfigs {
  static constexpr bool kGrid = std::is_same_v<Pattern, Neighborhood<3>>;
  static constexpr BackwardTile kKeyMajor = key_major_tile(kDim, kBudget, kGrid);
  static constexpr BackwardTile kQueryMajor = query_major_tile(kDim, kBudget, kGrid);
  using KeyMajor = BackwardConfig<Element, kDim, kKeyMajor.queries, kKeyMajor.keys,
                                  kKeyMajor.stages, kKeyMajor.warps>;
  using QueryMajor = BackwardConfig<Element, kDim, kQueryMajor.queries, kQueryMajor.keys,
                                    kQueryMajor.stages, kQueryMajor.warps>;
};

}  // namespace tileattn::cuda
