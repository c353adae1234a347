// Products in which hidden pairs of tokens have a weight of 0, whatever their values are: 0 times
// what is not finite is not 0, and would reach queries that do not see it.
//
// A product of finite values is the plain one. From any other each value that is not finite is
// taken out, and then added to the rows in which its weight is not 0; no other bit changes.
#pragma once

#include "cpu/common/pack.h"

namespace tileattn::cpu::TILEATTN_ISA {

constexpr std::uint32_t kExponent = 0x7f800000u;  // all ones: infinite, or not a number

/// Of rows of whole vectors.
template <class Element>
bool all_finite(ConstMatrix<Element> x, int rows, int columns) {
  using Ops = Arithmetic<Element>;
  IntVec largest{};
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < columns; i += kWidth) {
      const BitVec bits = reinterpret_cast<BitVec>(Ops::load(x.data + r * x.stride + i));
      for (int n = 0; n < Ops::kNumbers; ++n) {
        const IntVec exponent = reinterpret_cast<IntVec>(Ops::number(bits, n) & kExponent);
        largest = exponent > largest ? exponent : largest;
      }
    }
  bool finite = true;
  for (int lane = 0; lane < kWidth; ++lane) finite = finite && largest[lane] != int{kExponent};
  return finite;
}

/// C += A B of one step of the depth.
template <class Element>
void add_step(int rows, int columns, StridedA<Element> a, const Element* b, RowMajor c) {
  using Ops = Arithmetic<Element>;
  alignas(kVecBytes) Element finite[kMaxColumns];
  for (int i = 0; i < columns; ++i) {
    auto bits = __builtin_bit_cast(std::uint32_t, b[i]);
    for (int n = 0; n < Ops::kNumbers; ++n)
      if ((Ops::number(bits, n) & kExponent) == kExponent) bits &= ~Ops::kNumber[n];
    finite[i] = __builtin_bit_cast(Element, bits);
  }
  product<Element>(rows, columns, 1, a, {finite, columns}, c, 1.0f);
  for (int n = 0; n < Ops::kNumbers; ++n)
    for (int i = 0; i < columns; ++i) {
      const auto value = Ops::number(__builtin_bit_cast(std::uint32_t, b[i]), n);
      if ((value & kExponent) != kExponent) continue;
      for (int r = 0; r < rows; ++r) {
        const auto of_row = __builtin_bit_cast(std::uint32_t, a.data[r * a.row_stride]);
        const float weight = float_of(Ops::number(of_row, n));
        if (weight != 0.0f) c.data[r * c.stride + i] += weight * float_of(value);
      }
    }
}

/// As product(), where A is 0 for hidden pairs. `finite`: whether all of B is.
template <class Element = float>
void visible_product(bool finite, int rows, int columns, int depth,
                     typename NotDeduced<StridedA<Element>>::Type a,
                     typename NotDeduced<ConstMatrix<Element>>::Type b, RowMajor c, float keep,
                     Prefetches* ahead = nullptr) {
  if (finite) return product<Element>(rows, columns, depth, a, b, c, keep, ahead);
  for (int r = 0; r < rows && keep == 0.0f; ++r) fill(part(c, r).data, columns, 0.0f);
  for (int k = 0; k < depth; ++k)
    add_step<Element>(rows, columns, {a.data + k * a.k_stride, a.row_stride, a.k_stride},
                      b.data + k * b.stride, c);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
