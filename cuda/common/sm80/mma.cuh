// Products of tiles by mma.sync, whose operands come from shared memory (ldmatrix) or stay in
// registers.
#pragma once

#include "common/tile.cuh"

namespace tileattn::cuda {

/// mma.sync m16n8k16 with fp32 sums.
template <class Element>
using MmaAtom80 =
    MMA_Atom<std::conditional_t<std::is_same_v<Element, half_t>, SM80_16x8x16_F32F16F16F32_TN,
                                SM80_16x8x16_F32BF16BF16F32_TN>>;

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

/// A product's accumulators, rounded, in the order of an A operand: the weights
/// of Q K^T become the left side of P V without leaving the registers.
template <class Element, class Product>
CUTE_DEVICE auto as_operand_a(const Product& product) {
  Tensor rounded = make_tensor_like<Element>(product);
  round_pairs(product, rounded);
  constexpr int kRowTiles = decltype(size<1>(product))::value;
  constexpr int kColumnTiles = decltype(size<2>(product))::value;
  // Two 8-column accumulator tiles make up the 16 columns of one operand tile.
  auto layout = Layout<Shape<Shape<_4, _2>, Int<kRowTiles>, Int<kColumnTiles / 2>>,
                       Stride<Stride<_1, Int<4 * kRowTiles>>, _4, Int<8 * kRowTiles>>>{};
  Tensor operand = make_tensor<Element>(Shape<_8, Int<kRowTiles>, Int<kColumnTiles / 2>>{});
  Tensor view = make_tensor(rounded.data(), layout);
  CUTE_UNROLL
  for (int n = 0; n < size(operand); ++n) operand(n) = view(n);
  return operand;
}

/// sum += A B^T with A in registers and B [N, K] in shared memory. B is loaded a few
/// columns at a time, just before they are multiplied: a wide B would fill the registers.
template <class Element, class Mma, class CopyB, class Sum, class OperandA, class LayoutB>
CUTE_DEVICE void multiply_registers(Mma mma, CopyB, Sum& sum, const OperandA& a, const Element* b,
                                    LayoutB layout_b) {
  Tensor tile_b = make_tensor(make_smem_ptr(b), layout_b);
  auto copy_b = make_tiled_copy_B(Copy_Atom<CopyB, Element>{}, mma);
  auto thread_b = copy_b.get_slice(fresh_thread_index());
  Tensor from_b = thread_b.partition_S(tile_b);
  Tensor part_b = make_tensor<Element>(partition_shape_B(mma, shape(layout_b)));
  Tensor to_b = thread_b.retile_D(part_b);
  constexpr int kSteps = decltype(size<1>(from_b))::value;
  constexpr int kWidth = decltype(size<1>(part_b))::value / kSteps;
  CUTE_UNROLL
  for (int k = 0; k < size<2>(part_b); ++k) {
    CUTE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      copy(copy_b, from_b(_, step, k), to_b(_, step, k));
      CUTE_UNROLL
      for (int n = step * kWidth; n < (step + 1) * kWidth; ++n) {
        CUTE_UNROLL
        for (int m = 0; m < size<1>(a); ++m) gemm(mma, a(_, m, k), part_b(_, n, k), sum(_, m, n));
      }
    }
  }
}

}  // namespace tileattn::cuda
