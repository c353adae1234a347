// The tile table of the sm_90 forward.
#pragma once

#include <type_traits>

#include "common/sm90/ring.cuh"
#include "softmax/visible_scores.cuh"
#include "tileattn/pattern/dense.h"
#include "tileattn/pattern/sliding_window.h"

namespace tileattn::cuda {

/// Each consumer warpgroup works on 64 rows of the query tile; one more brings the tiles.
template <class Element_, int kDim_, int kConsumers_, int kKeys_, int kStages_>
struct ForwardSm90Config {
  using Element = Element_;
  static constexpr int kDim = kDim_;  // of q, k, v and out, zero-padded in shared memory
  static constexpr int kConsumers = kConsumers_;
  static constexpr int kRowsOfConsumer = 64;
  static constexpr int kQueries = kConsumers * kRowsOfConsumer;
  static constexpr int kKeys = kKeys_;
  static constexpr int kStages = kStages_;  // of K and V each
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr Tiling kTiling{kQueries, kKeys};
  static constexpr bool kExactQuotient = false;  // of scores
  /// Softmax of one warpgroup under the products of another; at head dim 256 the
  /// products take so much longer that it does not matter who is when at it.
  static constexpr bool kTakesTurns = kDim <= 128;

  // Registers of a thread, out of 64 Ki for all.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;

  // The copy engine writes rows of 64 columns with the swizzle that wgmma reads: along the
  // head dim as it stands (K-major), or across it, V (MN-major).
  template <class Shape>
  using AlongDim = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<Element>{}, Shape{}));
  template <class Shape>
  using AcrossDim =
      decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<Element>{}, Shape{}, Step<_2, _1, _3>{}));
  using QuerySmem = AlongDim<Shape<Int<kQueries>, Int<kDim>>>;
  using KeySmem = AlongDim<Shape<Int<kKeys>, Int<kDim>, Int<kStages>>>;
  using ValueSmem = AcrossDim<Shape<Int<kDim>, Int<kKeys>, Int<kStages>>>;

  using Consumers = Layout<Shape<Int<kConsumers>, _1, _1>>;
  using ScoreMma = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kKeys>, Int<kDim>>>(),
      Consumers{}));
  using OutMma = decltype(make_tiled_mma(
      GMMA::rs_op_selector<Element, Element, float, Shape<_64, Int<kDim>, Int<kKeys>>,
                           GMMA::Major::K, GMMA::Major::MN>(),
      Consumers{}));

  static_assert(kKeys % 16 == 0 && kDim % 64 == 0);
  static_assert(decltype(tile_size<1>(ScoreMma{}))::value == kKeys,
                "one instruction should be as wide as the tile");
};

template <class Config>
struct alignas(1024) ForwardSm90Shared {
  using Element = typename Config::Element;
  Element q[Config::kQueries * Config::kDim];  // at the end out takes its place
  Element k[Config::kStages][Config::kKeys * Config::kDim];
  Element v[Config::kStages][Config::kKeys * Config::kDim];
  Ring<1> q_ring[Config::kConsumers];  // the rows of a consumer each
  Ring<Config::kStages> k_ring;
  Ring<Config::kStages> v_ring;
};

/// Tiles are smaller where the pattern cuts through many of them, or modifiers need registers.
template <class Element, int kDim, class Pattern, Modifiers kModifiers>
struct ForwardSm90Tile {
  static constexpr auto choose() {
    constexpr bool kPlain = kModifiers == Modifiers::kNone;
    constexpr bool kWindow = std::is_same_v<Pattern, SlidingWindow>;
    constexpr bool kDense = std::is_same_v<Pattern, Dense>;
    if constexpr (kDim == 64) {
      return ForwardSm90Config<Element, kDim, 3, kPlain && !kWindow ? 128 : 96, 4>{};
    } else if constexpr (kDim == 128) {
      return ForwardSm90Config<Element, kDim, 2, kPlain ? (kDense ? 176 : 128) : 112, 2>{};
    } else {
      constexpr int kKeys = kWindow ? 64 : 80;
      return ForwardSm90Config<Element, kDim, 2, kPlain ? kKeys : kKeys - 16, 2>{};
    }
  }
  using type = decltype(choose());
};

}  // namespace tileattn::cuda
