// How the products of a kernel hold their operands. The loops of forward.h and backward.h are
// templates of one such policy:
//
//   scores   = q k^T            out += weights v
//   dweights = dout v^T         dv += weights^T dout    dk += dscores^T q    dq += dscores k
//
// q, k, v and dout become elements when they are loaded: as A, whose rows are tokens; as B, where
// tokens run along the product's depth; or as panels, which are B with tokens across. Scores leave
// their product in fp32, become weights and gradients there, and then elements, in place.
#pragma once

#include "cpu/common/pack.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// Tensors of any dtype, multiplied in fp32.
struct Float32Operands {
  using Element = float;
  static constexpr int kNumbers = 1;        // in an element
  static constexpr bool kScalesQ = true;    // q times the scale of the scores, or else they
  static constexpr bool kOneLayout = true;  // A and B, and scores before and after, are the same

  /// a[rows][dim] = factor * from
  template <class Rows>
  static void load_a(const Rows& from, int rows, int dim, float factor, RowMajor a) {
    load_rows(from, 0, rows, rows, dim, factor, a);
  }
  /// b[rows][padded dim]
  template <class Rows>
  static void load_b(const Rows& from, int rows, int dim, RowMajor b) {
    load_rows(from, 0, rows, rows, dim, 1.0f, b);
  }
  /// panel[dim][kPanel]
  template <class Rows>
  static void load_panel(const Rows& from, int rows, int dim, float* panel) {
    load_transposed(from, rows, dim, panel);
  }

  /// Columns of a row of weights become elements.
  static void pack_weights(float*, Range) {}
  /// So do columns of some rows of a tile, from an even one on: to be read transposed and, where
  /// `along` is a matrix, by rows from there.
  static void pack_gradients(RowMajor, Range, Range, RowMajor = {}) {}
  /// x from an element on as A, after the above.
  static StridedA<float> by_rows(RowMajor x, int row, int column) {
    return {part(x, row, column).data, x.stride, 1};
  }
  static StridedA<float> transposed(RowMajor x, int row, int column) {
    return {part(x, row, column).data, 1, x.stride};
  }
};

/// Elements that hold `numbers` numbers.
template <class Operands>
constexpr int elements(int numbers) {
  return ceil_div(numbers, Operands::kNumbers);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
