// Which tokens a block works on.
#pragma once

#include <cute/config.hpp>

#include "common/tile_slots.h"
#include "params.h"

namespace tileattn::cuda {

enum class Time { kForwards, kBackwards };

/// The part of a (sequence, head) that a block owns: some value channels of a segment.
struct SegmentPart {
  int sequence, head, segment, slice;
  int entry;       // of the tensors' batch dimension
  int begin, end;  // tokens

  /// Blocks of a head follow each other: they share its operands in the L2 cache.
  __device__ SegmentPart(const LinearShape& shape, int slices, int block) {
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

/// The chunk that a scan visits n-th, its tokens counted from the first of the entry.
template <Time kTime>
CUTE_DEVICE Range chunk_tokens(const SegmentPart& place, int n) {
  int chunk = kTime == Time::kForwards ? n : place.chunks() - 1 - n;
  int begin = place.begin + chunk * kChunk;
  return {begin, imin(begin + kChunk, place.end)};
}

}  // namespace tileattn::cuda
