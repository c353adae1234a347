// Tile shapes, shared-memory layouts and matrix-multiply partitions of the
// backward kernels.
#pragma once

#include <cute/tensor.hpp>
#include <type_traits>

#include "tileattn/attention.h"

namespace tileattn::cuda {

using namespace cute;

/// Shared memory that a block may ask for: 99 KiB on sm_86 and sm_89, 163 KiB
/// or more on sm_80 and sm_90.
enum class SharedBudget { k99KiB, k163KiB };

constexpr int bytes_of(SharedBudget budget) {
  return (budget == SharedBudget::k99KiB ? 99 : 163) * 1024;
}

/// Constants of a kernel that works on tiles of kQueries x kKeys scores, whose
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

  /// Row-major [Rows, Columns], swizzled so that ldmatrix meets no bank conflict.
  template <int Rows, int Columns>
  struct Smem {
    using Atom = std::conditional_t<
        Columns % 64 == 0,
        decltype(composition(Swizzle<3, 3, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{})),
        decltype(composition(Swizzle<2, 3, 3>{}, Layout<Shape<_8, _32>, Stride<_32, _1>>{}))>;
    using Plain = decltype(tile_to_shape(Atom{}, Shape<Int<Rows>, Int<Columns>>{}));
    using Transposed = decltype(composition(
        Plain{}, Layout<Shape<Int<Columns>, Int<Rows>>, Stride<Int<Rows>, _1>>{}));
  };
  using QuerySmem = Smem<kQueries, kDim>;
  using KeySmem = Smem<kKeys, kDim>;
  using ScoreSmem = Smem<kQueries, kKeys>;

  using MmaAtom = MMA_Atom<std::conditional_t<std::is_same_v<Element, half_t>,
                                              SM80_16x8x16_F32F16F16F32_TN,
                                              SM80_16x8x16_F32BF16BF16F32_TN>>;
  template <int WarpsM, int WarpsN>
  using Mma = TiledMMA<MmaAtom, Layout<Shape<Int<WarpsM>, Int<WarpsN>, _1>>,
                       Tile<Int<16 * WarpsM>, Int<16 * WarpsN>, _16>>;

  // Warps are laid out so that a warp's part of each product is nearly square,
  // which reads the least shared memory per multiplication.
  static constexpr int kScoreWarpsM = kQueries >= 128 ? kWarps_ / 2 : 2;
  static constexpr int kWideWarps = kDim % 64 == 0 ? kWarps_ / 2 : 2;
  static constexpr int kKeyWarpsN = kKeys <= 64 ? kWideWarps : 2;
  static constexpr int kQueryWarpsN = kQueries <= 64 ? kWideWarps : 2;
  using ScoreMma = Mma<kScoreWarpsM, kWarps_ / kScoreWarpsM>;        // S and dP
  using KeyGradMma = Mma<kWarps_ / kKeyWarpsN, kKeyWarpsN>;          // dK and dV
  using QueryGradMma = Mma<kWarps_ / kQueryWarpsN, kQueryWarpsN>;    // dQ

  static_assert(kQueries % (16 * kScoreWarpsM) == 0);
  static_assert(kKeys % (16 * kWarps_ / kScoreWarpsM) == 0);
  static_assert(kKeys % (16 * kWarps_ / kKeyWarpsN) == 0 && kDim % (16 * kKeyWarpsN) == 0);
  static_assert(kQueries % (16 * kWarps_ / kQueryWarpsN) == 0 && kDim % (16 * kQueryWarpsN) == 0);
};

/// The tile of the key-major kernel: K and V stay, Q and dO are streamed.
template <class Element, int kDim, SharedBudget kBudget>
struct KeyMajorTile {
  static constexpr bool kSmall = kBudget == SharedBudget::k99KiB;
  static constexpr auto choose() {
    if constexpr (kDim <= 64) return BackwardConfig<Element, kDim, 64, 128, 2, 8>{};
    else if constexpr (kDim == 96) return BackwardConfig<Element, 96, 64, kSmall ? 64 : 128, 2, 8>{};
    else if constexpr (kDim == 128 && kSmall) return BackwardConfig<Element, 128, 64, 64, 1, 8>{};
    else if constexpr (kDim == 128) return BackwardConfig<Element, 128, 64, 128, 2, 8>{};
    else if constexpr (kDim == 192 && kSmall) return BackwardConfig<Element, 192, 32, 64, 1, 8>{};
    else if constexpr (kDim == 192) return BackwardConfig<Element, 192, 64, 64, 2, 8>{};
    else if constexpr (kSmall) return BackwardConfig<Element, kDim, 32, 32, 1, 4>{};
    else return BackwardConfig<Element, kDim, 64, 64, 1, 8>{};
  }
  using type = decltype(choose());
};

/// The tile of the query-major kernel: Q and dO stay, K and V are streamed.
template <class Element, int kDim, SharedBudget kBudget>
struct QueryMajorTile {
  static constexpr bool kSmall = kBudget == SharedBudget::k99KiB;
  static constexpr auto choose() {
    if constexpr (kDim == 128 && !kSmall) return BackwardConfig<Element, 128, 128, 64, 2, 8>{};
    else return typename KeyMajorTile<Element, kDim, kBudget>::type{};
  }
  using type = decltype(choose());
};

}  // namespace tileattn::cuda
