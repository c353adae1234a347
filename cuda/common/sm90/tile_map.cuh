// Tensor maps: q, k, v and out as the copy engine of Hopper (TMA) sees them.
//
// The engine cuts a box off at the bounds of the tensor: zeros are loaded from
// outside, nothing is stored there. A tile must be cut off where its sequence
// ends, though, and in packed tensors that is no bound. So the tokens are given
// as two dimensions of the same stride: token = base + row - tile, where `row`
// is bounded by the rows of a tile. A tile of which only the first n rows exist
// starts at row (tile - n); the others lie out of bounds, wherever it stands.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cute/arch/copy_sm90_tma.hpp>
#include <stdexcept>
#include <string>

#include "barrier.cuh"
#include "common/device.h"
#include "tileattn/pattern/pattern.h"
#include "tileattn/tensor_ref.h"

namespace tileattn::cuda {

using namespace cute;

/// Columns of a box: a row of it fills the 128 bytes that the swizzle is made for.
constexpr int kBoxColumns = 64;
template <class Element>
constexpr bool kFillsRow = kBoxColumns * sizeof(Element) == 128;

/// What the copy engine is told of a tensor [entries, tokens, heads, dims] of 2-byte elements.
struct TileMap {
  CUtensorMap map;
  int per_head;  // 1, or 0 where the stride is 0
  int per_entry;
};

/// Where a tile lies: the tokens [first, end) of a head, at most a tile's rows of them.
struct TilePlace {
  int first;
  int end;
  int head;
  int entry;
};

/// Loads and stores [kRows, kDim] tiles, kBoxColumns columns at a time; in shared memory one
/// such block of columns follows kPitch rows after the other.
template <int kRows, int kDim, int kPitch>
struct TileCopy {
  static_assert(kDim % kBoxColumns == 0 && kRows <= 256 && kRows % 8 == 0);

  /// Announces the bytes at `barrier` and starts to load them.
  template <class Element>
  CUTE_DEVICE static void load(const TileMap& map, Element* to, const TilePlace& from,
                               Barrier& barrier, TMA::CacheHintSm90 hint) {
    static_assert(kFillsRow<Element>);
    barrier.arrive_expecting(kRows * kDim * int(sizeof(Element)));
    int rows = valid_rows(from);
    CUTE_UNROLL
    for (int column = 0; column < kDim; column += kBoxColumns)
      SM90_TMA_LOAD_5D::copy(&map.map, barrier.word(), static_cast<std::uint64_t>(hint),
                             to + column * kPitch, column, kRows - rows, from.first + rows,
                             from.head * map.per_head, from.entry * map.per_entry);
  }

  template <class Element>
  CUTE_DEVICE static void store(const TileMap& map, const Element* from, const TilePlace& to) {
    static_assert(kFillsRow<Element>);
    int rows = valid_rows(to);
    CUTE_UNROLL
    for (int column = 0; column < kDim; column += kBoxColumns)
      SM90_TMA_STORE_5D::copy(&map.map, from + column * kPitch, column, kRows - rows,
                              to.first + rows, to.head * map.per_head, to.entry * map.per_entry);
  }

 private:
  CUTE_DEVICE static int valid_rows(const TilePlace& place) {
    return imax(0, imin(kRows, place.end - place.first));
  }
};

/// Whether a map can be made: `tokens` rows that lie apart. (Any other stride of 0 is fine.)
template <class Ref>
bool can_map(const Ref& tensor, int tokens) {
  return tokens > 0 && (tensor.token_stride != 0 || tokens == 1);
}

/// cuTensorMapEncodeTiled, found at run time so that libcuda need not be linked.
inline auto tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    constexpr unsigned kSinceCuda12 = 12000;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSinceCuda12,
                                           cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("tileattn: the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

inline CUtensorMapDataType map_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kBFloat16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat32: break;
  }
  throw std::invalid_argument(std::string("tileattn: no tiles of Hopper for ") + name_of(dtype));
}

/// The map for tiles of `rows` rows.
template <class Ref>
TileMap make_tile_map(const Ref& tensor, DType dtype, int rows, int entries, int tokens, int heads,
                      int dims) {
  constexpr int kRank = 5;
  const auto element_bytes = std::int64_t(size_of(dtype));
  constexpr std::int64_t kAnyStride = 16;  // of a dimension of size 1
  auto bytes = [&](std::int64_t stride) { return stride ? stride * element_bytes : kAnyStride; };
  TileMap map{};
  map.per_head = tensor.head_stride != 0, map.per_entry = tensor.batch_stride != 0;
  auto row_bytes = static_cast<cuuint64_t>(bytes(tensor.token_stride));
  const cuuint64_t sizes[kRank] = {cuuint64_t(dims), cuuint64_t(rows), cuuint64_t(tokens) + 1,
                                   cuuint64_t(map.per_head ? heads : 1),
                                   cuuint64_t(map.per_entry ? entries : 1)};
  const cuuint64_t strides[kRank - 1] = {row_bytes, row_bytes,
                                         cuuint64_t(bytes(tensor.head_stride)),
                                         cuuint64_t(bytes(tensor.batch_stride))};
  const cuuint32_t box[kRank] = {kBoxColumns, cuuint32_t(rows), 1, 1, 1};
  const cuuint32_t steps[kRank] = {1, 1, 1, 1, 1};
  auto* origin = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(tensor.data) -
                                         cuuint64_t(rows) * row_bytes);
  CUresult result =
      tensor_map_encoder()(&map.map, map_type_of(dtype), kRank, origin, sizes, strides, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("tileattn: cuTensorMapEncodeTiled failed with error " +
                             std::to_string(static_cast<int>(result)));
  return map;
}

}  // namespace tileattn::cuda
