// What the kernels do with one tile: lay it out in shared memory, load it,
// multiply it, store it. Which tokens it holds is the matter of tiles_in_a_row.cuh
// and tiles_of_grid.cuh.
#pragma once

#include <cutlass/numeric_conversion.h>
#include <cute/tensor.hpp>
#include <type_traits>

#include "tileattn/pattern/pattern.h"

namespace tileattn::cuda {

using namespace cute;

/// mma.sync m16n8k16 with fp32 sums.
template <class Element>
using MmaAtom80 =
    MMA_Atom<std::conditional_t<std::is_same_v<Element, half_t>, SM80_16x8x16_F32F16F16F32_TN,
                                SM80_16x8x16_F32BF16BF16F32_TN>>;

/// Row-major [Rows, Columns], swizzled so that ldmatrix meets no bank conflict.
template <int Rows, int Columns>
struct SwizzledSmem {
  using Atom = std::conditional_t<
      Columns % 64 == 0,
      decltype(composition(Swizzle<3, 3, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{})),
      decltype(composition(Swizzle<2, 3, 3>{}, Layout<Shape<_8, _32>, Stride<_32, _1>>{}))>;
  using Plain = decltype(tile_to_shape(Atom{}, Shape<Int<Rows>, Int<Columns>>{}));
  using Transposed = decltype(composition(
      Plain{}, Layout<Shape<Int<Columns>, Int<Rows>>, Stride<Int<Rows>, _1>>{}));
};

/// A number, in a way that keeps the compiler from computing what depends on it (addresses,
/// coordinates) once and holding it in registers across the loop.
CUTE_DEVICE int fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
CUTE_DEVICE int fresh_thread_index() { return fresh(threadIdx.x); }

/// Calls visit(row, column) for the 16-byte chunks of a tile that are this thread's.
template <class Config, class Layout, class Visit>
CUTE_DEVICE void for_each_chunk(Layout layout, Visit&& visit) {
  constexpr int kChunks = size<1>(layout) / 8;  // in a row
  static_assert(size<0>(layout) * kChunks % Config::kThreads == 0);
  int thread = fresh_thread_index();
  CUTE_UNROLL
  for (int n = 0; n < size<0>(layout) * kChunks; n += Config::kThreads)
    visit((thread + n) / kChunks, (thread + n) % kChunks * 8);
}

/// Starts copying the rows of a tile; what lies outside of it is set to zero.
template <class Config, class Layout, class Rows>
CUTE_DEVICE void load_rows(typename Config::Element* to, Layout layout, const Rows& rows,
                           int dims) {
  for_each_chunk<Config>(layout, [&](int row, int column) {
    bool inside = rows.has(row) && column < dims;
    auto* source = inside ? rows[row] + column : rows.first;
    SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(
        *reinterpret_cast<const uint128_t*>(source),
        *reinterpret_cast<uint128_t*>(to + layout(row, column)), inside);
  });
}

template <class Config, class Layout, class Rows>
CUTE_DEVICE void store_rows(const typename Config::Element* from, Layout layout, const Rows& rows,
                            int dims) {
  for_each_chunk<Config>(layout, [&](int row, int column) {
    if (rows.has(row) && column < dims)
      *reinterpret_cast<uint128_t*>(rows[row] + column) =
          *reinterpret_cast<const uint128_t*>(from + layout(row, column));
  });
}

using AlongK = SM75_U32x4_LDSM_N;   // K is the contiguous dimension
using AcrossK = SM75_U16x8_LDSM_T;  // M or N is

/// sum += A B^T with A [M, K] and B [N, K] in shared memory.
template <class Element, class Mma, class CopyA, class CopyB, class Sum, class LayoutA,
          class LayoutB>
CUTE_DEVICE void multiply_shared(Mma mma, CopyA, CopyB, Sum& sum, const Element* a,
                                 LayoutA layout_a, const Element* b, LayoutB layout_b) {
  Tensor tile_a = make_tensor(make_smem_ptr(a), layout_a);
  Tensor tile_b = make_tensor(make_smem_ptr(b), layout_b);
  auto copy_a = make_tiled_copy_A(Copy_Atom<CopyA, Element>{}, mma);
  auto copy_b = make_tiled_copy_B(Copy_Atom<CopyB, Element>{}, mma);
  auto thread_a = copy_a.get_slice(fresh_thread_index());
  auto thread_b = copy_b.get_slice(fresh_thread_index());
  Tensor from_a = thread_a.partition_S(tile_a);
  Tensor from_b = thread_b.partition_S(tile_b);
  Tensor part_a = make_tensor<Element>(partition_shape_A(mma, shape(layout_a)));
  Tensor part_b = make_tensor<Element>(partition_shape_B(mma, shape(layout_b)));
  Tensor to_a = thread_a.retile_D(part_a);
  Tensor to_b = thread_b.retile_D(part_b);
  CUTE_UNROLL
  for (int k = 0; k < size<2>(part_a); ++k) {
    copy(copy_a, from_a(_, _, k), to_a(_, _, k));
    copy(copy_b, from_b(_, _, k), to_b(_, _, k));
    gemm(mma, part_a(_, _, k), part_b(_, _, k), sum);
  }
}

/// product += queries keys^T over the head dim, in the blocks of columns that a
/// swizzled tile keeps together: this bounds the registers that fragments loaded
/// ahead can take.
template <class Config, class Product>
CUTE_DEVICE void multiply_scores(Product& product, const typename Config::Element* queries,
                                 const typename Config::Element* keys) {
  constexpr int kBlock = Config::kDim % 64 == 0 ? 64 : 32;
  CUTE_NO_UNROLL
  for (int column = 0; column < Config::kDim; column += kBlock)
    multiply_shared(typename Config::ScoreMma{}, AlongK{}, AlongK{}, product,
                    queries + column * Config::kQueries,
                    typename SwizzledSmem<Config::kQueries, kBlock>::Plain{},
                    keys + column * Config::kKeys,
                    typename SwizzledSmem<Config::kKeys, kBlock>::Plain{});
}

/// Rounds a product to the element type of `rounded`, of the same layout.
template <class Product, class Rounded>
CUTE_DEVICE void round_pairs(const Product& product, Rounded& rounded) {
  using Element = typename Rounded::value_type;
  auto* from = reinterpret_cast<const cutlass::Array<float, 2>*>(product.data());
  auto* to = reinterpret_cast<cutlass::Array<Element, 2>*>(rounded.data());
  CUTE_UNROLL
  for (int n = 0; n < size(rounded) / 2; ++n)
    to[n] = cutlass::NumericArrayConverter<Element, float, 2>{}(from[n]);
}

/// Rounds a product to Element and puts it into a shared-memory tile.
template <class Element, class Mma, class Sum, class Layout>
CUTE_DEVICE void round_to_shared(Mma mma, const Sum& sum, Element* to, Layout layout) {
  Tensor rounded = make_tensor_like<Element>(sum);
  round_pairs(sum, rounded);
  auto copy_c = make_tiled_copy_C(Copy_Atom<UniversalCopy<uint32_t>, Element>{}, mma);
  Tensor tile = make_tensor(make_smem_ptr(to), layout);
  auto thread_copy = copy_c.get_slice(fresh_thread_index());
  copy(copy_c, thread_copy.retile_S(rounded), thread_copy.partition_D(tile));
}

/// A product's values as a [rows, columns] matrix. They are ((pair, row), tile_m, tile_n) of
/// mma.sync and ((pair, row, 8 columns), tile_m, tile_n) of wgmma.
template <class Product>
CUTE_DEVICE auto by_rows(Product&& product) {
  auto layout = product.layout();
  auto rows = make_layout(get<0, 1>(layout), get<1>(layout));
  if constexpr (decltype(rank<0>(layout))::value == 3) {
    auto columns = make_layout(get<0, 0>(layout), get<0, 2>(layout), get<2>(layout));
    return make_tensor(product.data(), make_layout(rows, columns));
  } else {
    auto columns = make_layout(get<0, 0>(layout), get<2>(layout));
    return make_tensor(product.data(), make_layout(rows, columns));
  }
}

/// The tile coordinates of a thread's scores, by_rows.
template <class Config>
CUTE_DEVICE auto score_coordinates(int thread) {
  return by_rows(typename Config::ScoreMma{}.get_slice(thread).partition_C(
      make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kKeys>>{})));
}

}  // namespace tileattn::cuda
