// Which tokens a block works on, and their operands on the way to shared memory.
#pragma once

#include "params.h"
#include "softmax_attention/tiles_in_a_row.cuh"

namespace tileattn::cuda {

enum class Walk { kForwards, kBackwards };

/// Tile shapes and partitions. kDim: channels of queries and keys, zero-padded in shared memory.
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

/// The part of a (sequence, head) that a block owns: some value channels of a segment.
struct Place {
  int sequence, head, segment, slice;
  int entry;       // of the tensors' batch dimension
  int begin, end;  // tokens

  /// Blocks of a head follow each other: they share its operands in the L2 cache.
  __device__ Place(const LinearShape& shape, int slices, int block) {
    segment = block % shape.segments;
    block /= shape.segments;
    slice = block % slices;
    block /= slices;
    head = block % shape.heads;
    sequence = block / shape.heads;
    entry = shape.cu_seqlens ? 0 : sequence;
    Range tokens = TileSlots{shape.cu_seqlens, shape.batch, shape.len, kChunk}.tokens(sequence);
    int chunks = tileattn::ceil_div(tokens.size(), kChunk);
    int size = tileattn::ceil_div(chunks, shape.segments) * kChunk;
    begin = imin(tokens.begin + segment * size, tokens.end);
    end = imin(begin + size, tokens.end);
  }

  __device__ int chunks() const { return tileattn::ceil_div(end - begin, kChunk); }
  /// Where the numbers of (token, head) pairs and of (sequence, head) pairs stand.
  __device__ std::int64_t row(const LinearShape& shape, int token) const {
    return (std::int64_t{entry} * shape.len + token) * shape.heads + head;
  }
  __device__ std::int64_t pair(const LinearShape& shape) const {
    return std::int64_t{sequence} * shape.heads + head;
  }
};

/// The chunk that a walk visits n-th, its tokens counted from the first of the entry.
template <Walk kWalk>
CUTE_DEVICE Range chunk_tokens(const Place& place, int n) {
  int chunk = kWalk == Walk::kForwards ? n : place.chunks() - 1 - n;
  int begin = place.begin + chunk * kChunk;
  return {begin, imin(begin + kChunk, place.end)};
}

/// Starts copying channels [column, column + the layout's) of a chunk.
template <class Config, class Layout>
CUTE_DEVICE void fetch_tile(typename Config::Element* to, Layout layout, const Operand& operand,
                            const Place& place, Range tokens, int column) {
  using Element = typename Config::Element;
  const Element* rows = row_pointer<const Element>(operand.tensor, fresh(place.entry), tokens.begin,
                                                   place.head / operand.group);
  load_rows<Config>(
      to, layout,
      RowsInARow<const Element>{rows + column, operand.tensor.token_stride, tokens.size()},
      operand.dim - column);
}

}  // namespace tileattn::cuda
