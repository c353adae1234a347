// Epilogue: out and lse leave the loop, either for good or as one part of the
// keys (split), in fp32, for combine_kernel to merge. How a finished tile of out
// gets to memory is the main loops' matter.
#pragma once

#include "softmax.cuh"
#include "tiles_in_a_row.cuh"

namespace tileattn::cuda {

/// Results of `splits` parts of the keys; null where keys are not split.
struct Partials {
  float* out = nullptr;  // [splits, rows, dim_v], a row being a (token, query head)
  float* lse = nullptr;  // [splits, rows]
  int splits = 1;
};

struct ForwardParams {
  AttentionForward problem;
  Partials partials;
  GridPlan plan;
};

/// Rows of lse, over all sequences.
TILEATTN_HOST_DEVICE std::int64_t rows_of(const AttentionProblem& problem) {
  std::int64_t entries = problem.cu_seqlens_q ? 1 : problem.batch;
  return entries * problem.len_q * problem.heads_q;
}

/// The (row, column) of out that each of this thread's elements is.
template <class Config>
CUTE_DEVICE auto out_coordinates() {
  return by_rows(
      typename Config::OutMma{}
          .get_slice(threadIdx.x)
          .partition_C(make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kDim>>{})));
}

/// Writes the lse of the rows of a tile.
template <class Config, class Rows, int kRows>
CUTE_DEVICE void store_lse(const Rows& rows, const OnlineSoftmax<kRows>& softmax) {
  Tensor coordinates = out_coordinates<Config>();
  CUTE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    int row = get<0>(coordinates(r, 0));
    if (rows.has(row) && threadIdx.x % 4 == 0) *rows[row] = softmax.lse(r);
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
