// The one matrix product that everything else is made of:
//
//   C[m][n] = keep * C[m][n] + sum over k of A(m, k) * B[k][n]
//
// With keep = 0, C is not read.
// A is read element by element at any strides, so it may be transposed; B and C
// are row-major and n a multiple of kColumnGranule. A block of up to kGroup rows
// by kMaxVecs vectors of C stays in registers while k runs.
//
// Elements of A and B have 32 bits: a float, or several narrower numbers that follow each other
// in k. Arithmetic<Element> says how they are multiplied.
#pragma once

#include "cpu/common/blocks.h"
#include "cpu/common/prefetch.h"
#include "cpu/common/vec.h"

namespace tileattn::cpu::TILEATTN_ISA {

template <class Element>
struct StridedA {
  const Element* data;
  std::int64_t row_stride;
  std::int64_t k_stride;
};

template <class Element>
struct Matrix {
  Element* data;
  std::int64_t stride;
};
using RowMajor = Matrix<float>;

template <class Element>
struct ConstMatrix {
  const Element* data;
  std::int64_t stride;
  ConstMatrix(const Element* data, std::int64_t stride) : data(data), stride(stride) {}
  ConstMatrix(Matrix<Element> x) : data(x.data), stride(x.stride) {}
};

/// The rest of x from an element on.
template <class Element>
Matrix<Element> part(Matrix<Element> x, int row, int column = 0) {
  return {x.data + row * x.stride + column, x.stride};
}

/// How elements are multiplied.
template <class Element>
struct Arithmetic;

template <>
struct Arithmetic<float> {
  static Vec load(const float* from) { return TILEATTN_ISA::load(from); }
  static Vec broadcast(float a) { return TILEATTN_ISA::broadcast(a); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return sum + a * b; }

  static constexpr std::uint32_t kNumber[] = {~0u};  // the bits of each
  static constexpr int kNumbers = 1;
  /// One of them as the bits of a float, of a word or of each in a vector.
  template <class Bits>
  static Bits number(Bits bits, int) {
    return bits;
  }
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVecs = 4;  // 6 x 4 of 32 registers
#else
constexpr int kMaxVecs = 2;  // 6 x 2 of 16
#endif

// Blocks are inlined: structs passed to them through the stack, written as vectors, would wait
// behind the arithmetic of the block before, for about eight steps of k.
template <int Rows, int Vecs, class Element>
[[gnu::always_inline]] inline void block_product(int depth, StridedA<Element> a, const Element* b,
                                                 std::int64_t b_stride, RowMajor c, float keep) {
  using Ops = Arithmetic<Element>;
  Vec sum[Rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v)
      sum[r][v] = keep != 0.0f ? keep * load(c.data + r * c.stride + v * kWidth) : Vec{};
  const Element* a_column = a.data;
  for (int k = 0; k < depth; ++k, b += b_stride, a_column += a.k_stride) {
    decltype(Ops::load(b)) b_row[Vecs];
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) b_row[v] = Ops::load(b + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto a_element = Ops::broadcast(a_column[r * a.row_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) sum[r][v] = Ops::multiply_add(a_element, b_row[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) store(c.data + r * c.stride + v * kWidth, sum[r][v]);
}

template <int Vecs, class Element>
[[gnu::always_inline]] inline void group_product(int rows, int depth, StridedA<Element> a,
                                                 const Element* b, std::int64_t b_stride,
                                                 RowMajor c, float keep) {
  static_assert(kGroup == 6);
  switch (rows) {
    case 1: return block_product<1, Vecs>(depth, a, b, b_stride, c, keep);
    case 2: return block_product<2, Vecs>(depth, a, b, b_stride, c, keep);
    case 3: return block_product<3, Vecs>(depth, a, b, b_stride, c, keep);
    case 4: return block_product<4, Vecs>(depth, a, b, b_stride, c, keep);
    case 5: return block_product<5, Vecs>(depth, a, b, b_stride, c, keep);
    default: return block_product<6, Vecs>(depth, a, b, b_stride, c, keep);
  }
}

/// All rows of C, columns [column, column + vecs * kWidth).
template <class Element>
[[gnu::always_inline]] inline void panel_product(int rows, int vecs, int depth, StridedA<Element> a,
                                                 const Element* b, std::int64_t b_stride,
                                                 RowMajor c, float keep, Prefetches* ahead) {
  for (int r = 0; r < rows; r += kGroup) {
    if (ahead) ahead->step(depth);
    int count = imin(kGroup, rows - r);
    StridedA<Element> a_rows{a.data + r * a.row_stride, a.row_stride, a.k_stride};
    RowMajor c_rows{c.data + r * c.stride, c.stride};
    switch (vecs) {
      case 1: group_product<1>(count, depth, a_rows, b, b_stride, c_rows, keep); break;
      case 2: group_product<2>(count, depth, a_rows, b, b_stride, c_rows, keep); break;
#if defined(__AVX512F__) || defined(__aarch64__)
      case 3: group_product<3>(count, depth, a_rows, b, b_stride, c_rows, keep); break;
      case 4: group_product<4>(count, depth, a_rows, b, b_stride, c_rows, keep); break;
#endif
    }
  }
}

template <class T>
struct NotDeduced {
  using Type = T;
};

/// depth: in elements. Not inlined: beside other code the compiler would not keep C in registers.
template <class Element = float>
[[gnu::noinline]] void product(int rows, int columns, int depth,
                               typename NotDeduced<StridedA<Element>>::Type a,
                               typename NotDeduced<ConstMatrix<Element>>::Type b, RowMajor c,
                               float keep, Prefetches* ahead = nullptr) {
  int vecs_left = columns / kWidth;
  const Element* b_panel = b.data;
  while (vecs_left > 0) {
    // Even panels: 5 vectors are 3 + 2 rather than 4 + 1.
    int vecs = ceil_div(vecs_left, ceil_div(vecs_left, kMaxVecs));
    panel_product(rows, vecs, depth, a, b_panel, b.stride, c, keep, ahead);
    b_panel += vecs * kWidth;
    c.data += vecs * kWidth;
    vecs_left -= vecs;
  }
}

}  // namespace tileattn::cpu::TILEATTN_ISA
