// Tile shapes and partitions of sm_80, and operands on the way to shared memory.
#pragma once

#include "common/rows.cuh"
#include "common/sm80/copy.cuh"
#include "common/sm80/mma.cuh"
#include "linear/segments.cuh"

namespace tileattn::cuda {

/// kDim: channels of queries and keys, zero-padded in shared memory.
/// Warps stand one below the other, so that a row of scores belongs to one warp.
template <class Element_, int kDim_>
struct LinearConfig {
  using Element = Element_;
  static constexpr int kDim = kDim_;
  static constexpr int kStages = 2;
  static constexpr int kWarps = kChunk / 16;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocks = 2;  // of a multiprocessor with 227 KiB; three would spill

  using Mma = TiledMMA<MmaAtom80<Element>, Layout<Shape<Int<kWarps>, _1, _1>>,
                       Tile<Int<16 * kWarps>, _16, _16>>;
  using KeySmem = SwizzledSmem<kChunk, kDim>;
  using ValueSmem = SwizzledSmem<kChunk, kValues>;
  using StateSmem = SwizzledSmem<kDim, kValues>;
  static_assert(kDim % (16 * kWarps) == 0);
};

/// Starts copying channels [column, column + the layout's) of a chunk.
template <class Config, class Layout>
CUTE_DEVICE void fetch_tile(typename Config::Element* to, Layout layout, const Operand& operand,
                            const SegmentPart& place, Range tokens, int column) {
  using Element = typename Config::Element;
  const Element* rows = row_pointer<const Element>(operand.tensor, fresh(place.entry), tokens.begin,
                                                   place.head / operand.group);
  load_rows<Config>(
      to, layout,
      StridedRows<const Element>{rows + column, operand.tensor.token_stride, tokens.size()},
      operand.dim - column);
}

}  // namespace tileattn::cuda
