// A tile on chip: its layout in shared memory, and a product's values in registers, which are
// rounded, put into shared memory and read by rows.
#pragma once

#include <cutlass/numeric_conversion.h>
#include <cute/tensor.hpp>
#include <type_traits>

namespace tileattn::cuda {

using namespace cute;

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

}  // namespace tileattn::cuda
