// Epilogue: out and lse leave the loop, either for good, with their low parts if they are asked
// for, or as one part of the keys (split), in fp32, for combine_kernel to merge. How a finished
// tile of out gets to memory is the main loops' matter.
#pragma once

#include "params.h"
#include "softmax.cuh"
#include "tileattn/low_part.h"

namespace tileattn::cuda {

/// The (row, column) of out that each of this thread's elements is.
template <class Config>
CUTE_DEVICE auto out_coordinates() {
  return by_rows(
      typename Config::OutMma{}
          .get_slice(threadIdx.x)
          .partition_C(make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kDim>>{})));
}

/// Calls store(r, to) for this thread's rows of a tile, `rows` of an array of one float for each.
template <class Config, int kRows, class Rows, class Store>
CUTE_DEVICE void for_each_row(const Rows& rows, Store&& store) {
  Tensor coordinates = out_coordinates<Config>();
  CUTE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    int row = get<0>(coordinates(r, 0));
    if (rows.has(row) && threadIdx.x % 4 == 0) store(r, rows[row]);
  }
}

/// Writes the lse of the rows of a tile, which are `rows` in problem.lse.
template <class Config, class Rows, int kRows>
CUTE_DEVICE void store_lse(const AttentionForward& problem, const Rows& rows,
                           const OnlineSoftmax<kRows>& softmax) {
  for_each_row<Config, kRows>(rows, [&](int r, float* to) {
    TwoFloats lse = softmax.lse(r);
    *to = lse.high;
    if (problem.lse_low) problem.lse_low[to - problem.lse] = lse.low;
  });
}

/// Writes maxima and sums of the rows of a tile, which are `rows` in parts.max.
template <class Config, class Rows, int kRows>
CUTE_DEVICE void store_sums(const Partials& parts, const Rows& rows,
                            const OnlineSoftmax<kRows>& softmax) {
  for_each_row<Config, kRows>(rows, [&](int r, float* to) {
    *to = softmax.max(r);
    parts.sum[to - parts.max] = softmax.sum(r);
  });
}

/// Writes the low parts of a tile of out, which are `rows` of problem.out_low.
template <class Config, class Rows, class Out>
CUTE_DEVICE void store_low_parts(const AttentionForward& problem, const Rows& rows,
                                 const Out& out) {
  using Element = typename Config::Element;
  Tensor coordinates = out_coordinates<Config>();
  Tensor values = by_rows(out);
  auto low = [&](float value) { return low_part(value, float(Element(value)), problem.dtype); };
  CUTE_UNROLL
  for (int r = 0; r < size<0>(values); ++r) {
    int row = get<0>(coordinates(r, 0));
    CUTE_UNROLL
    for (int c = 0; c < size<1>(values); c += 2) {  // two neighbours: dim_v is even
      int column = get<1>(coordinates(0, c));
      if (rows.has(row) && column < problem.dim_v)
        *reinterpret_cast<char2*>(rows[row] + column) =
            make_char2(low(values(r, c)), low(values(r, c + 1)));
    }
  }
}

/// Writes the rows of a tile of fp32 results.
template <class Config, class Rows, class Out>
CUTE_DEVICE void store_part(const Rows& rows, int dims, const Out& out) {
  Tensor coordinates = out_coordinates<Config>();
  Tensor values = by_rows(out);
  CUTE_UNROLL
  for (int r = 0; r < size<0>(values); ++r) {
    int row = get<0>(coordinates(r, 0));
    CUTE_UNROLL
    for (int c = 0; c < size<1>(values); ++c) {
      int column = get<1>(coordinates(0, c));
      if (rows.has(row) && column < dims) rows[row][column] = values(r, c);
    }
  }
}

}  // namespace tileattn::cuda
