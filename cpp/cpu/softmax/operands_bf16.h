// Operands as pairs of bfloat16, for the instruction that multiplies and adds them in fp32.
// Tensors in bfloat16 are multiplied as they are; weights and gradients of scores are rounded.
#pragma once

#include <immintrin.h>

#include "cpu/softmax/operands.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Two numbers that follow each other in a product's depth, the first in the lower half.
struct __attribute__((may_alias)) BFloat16Pair {
  std::uint32_t bits;
};
typedef std::uint32_t BitsInMemory __attribute__((vector_size(kVecBytes), aligned(2), may_alias));
typedef std::uint16_t Halves __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));

template <>
struct Arithmetic<BFloat16Pair> {
  static BitVec load(const BFloat16Pair* from) {
    return *reinterpret_cast<const BitsInMemory*>(from);
  }
  static BitVec broadcast(BFloat16Pair a) { return a.bits - BitVec{}; }
  /// Both products are added to the sum; subnormal numbers count as 0.
  static Vec multiply_add(BitVec a, BitVec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  static constexpr std::uint32_t kNumber[] = {0xffffu, 0xffff0000u};
  static constexpr int kNumbers = 2;
  template <class Bits>
  static Bits number(Bits bits, int n) {
    return n == 0 ? bits << 16 : bits & kNumber[1];
  }
};

/// Rounded to nearest even.
inline Halves to_bfloat16(Vec x) { return (Halves)_mm512_cvtneps_pbh(x); }

/// Tensors in bfloat16.
struct BFloat16Operands {
  using Element = BFloat16Pair;
  static constexpr int kNumbers = 2;
  static constexpr bool kScalesQ = false;  // which would round it
  static constexpr bool kOneLayout = false;

  /// a[rows][dim / 2]
  template <class Rows>
  static void load_a(const Rows& from, int rows, int dim, float, Matrix<Element> a) {
    const int bytes = dim * sizeof(std::uint16_t);
    for_each_row(from, 0, rows, bytes,
                 [&](int r) { __builtin_memcpy(part(a, r).data, from.row(r), bytes); });
  }

  /// b[(rows + 1) / 2][padded dim] holds pairs of tokens; the last may be one token and zeros.
  template <class Rows>
  static void load_b(const Rows& from, int rows, int dim, Matrix<Element> b) {
    const std::uint16_t zeros[kMaxDim] = {};
    for (int r = 0; r < rows; r += 2) {
      auto first = reinterpret_cast<const std::uint16_t*>(from.row(r));
      auto second = r + 1 < rows ? reinterpret_cast<const std::uint16_t*>(from.row(r + 1)) : zeros;
      Element* pairs = part(b, r / 2).data;
      for (int d = 0; d < dim; ++d) pairs[d].bits = first[d] | std::uint32_t{second[d]} << 16;
      for (int d = dim; d < b.stride; ++d) pairs[d].bits = 0;
    }
  }

  /// panel[dim / 2][kPanel] holds pairs of channels.
  template <class Rows>
  static void load_panel(const Rows& from, int rows, int dim, Element* panel) {
    transpose_rows_to_panel(from, true, rows, dim / 2, reinterpret_cast<float*>(panel),
                            [&](int first, int count, RowMajor to) {
                              for (int r = 0; r < kWidth; ++r) {
                                float* row = part(to, r).data;
                                fill(row, to.stride, 0.0f);
                                if (r < count)
                                  __builtin_memcpy(row, from.row(first + r),
                                                   dim * sizeof(std::uint16_t));
                              }
                            });
  }

  /// Each row shrinks to the first half of itself.
  static void pack_weights(float* row, Range columns) {
    for (int j = columns.begin; j < columns.end; j += kWidth)
      store_halves(row, j, to_bfloat16(load(row + j)));
  }

  /// Pairs of rows fill the first of the two.
  static void pack_gradients(RowMajor x, Range rows, Range columns, RowMajor along = {}) {
    for (int r = rows.begin; r < rows.end; r += 2) {
      float* row = part(x, r).data;
      const float* next = r + 1 < rows.end ? row + x.stride : nullptr;
      for (int j = columns.begin; j < columns.end; j += kWidth) {
        const Halves first = to_bfloat16(load(row + j));
        const Halves second = next ? to_bfloat16(load(next + j)) : Halves{};
        if (along.data) {
          store_halves(part(along, r).data, j, first);
          store_halves(part(along, r + 1).data, j, second);
        }
        *reinterpret_cast<BitsInMemory*>(row + j) =
            __builtin_convertvector(first, BitVec) | __builtin_convertvector(second, BitVec) << 16;
      }
    }
  }

  static StridedA<Element> by_rows(RowMajor x, int row, int column) {
    return {reinterpret_cast<const Element*>(part(x, row).data) + column / 2, x.stride, 1};
  }
  static StridedA<Element> transposed(RowMajor x, int row, int column) {
    return {reinterpret_cast<const Element*>(part(x, row, column).data), 1, 2 * x.stride};
  }

 private:
  static void store_halves(float* row, int column, Halves value) {
    *reinterpret_cast<Halves*>(reinterpret_cast<std::uint16_t*>(row) + column) = value;
  }
};

}  // namespace tileattn::cpu::TILEATTN_ISA
