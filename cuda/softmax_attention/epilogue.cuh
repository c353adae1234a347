// Epilogue: out and lse leave the loop, either for good or as one part of the
// keys (split), in fp32, for combine_kernel to merge. How a finished tile of out
// gets to memory is the main loops' matter.
#pragma once

#include "softmax.cuh"
#include "tile.cuh"

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
};

/// Rows of lse, over all sequences.
TILEATTN_HOST_DEVICE std::int64_t rows_of(const AttentionProblem& problem) {
  std::int64_t entries = problem.cu_seqlens_q ? 1 : problem.batch;
  return entries * problem.len_q * problem.heads_q;
}

/// The row of lse, and of partial results, where a query tile begins.
TILEATTN_HOST_DEVICE std::int64_t first_row(const AttentionProblem& problem,
                                            const Sequence& sequence, int head, int first_query) {
  std::int64_t token =
      std::int64_t{sequence.entry} * problem.len_q + sequence.first_q + first_query;
  return token * problem.heads_q + head;
}

/// The (row, column) of out that each of this thread's elements is.
template <class Config>
CUTE_DEVICE auto out_coordinates() {
  return by_rows(
      typename Config::OutMma{}
          .get_slice(threadIdx.x)
          .partition_C(make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kDim>>{})));
}

/// Writes the lse of the first `rows` rows of a tile; `lse` is that of its first row.
template <class Config, int kRows>
CUTE_DEVICE void store_lse(float* lse, int row_stride, int rows,
                           const OnlineSoftmax<kRows>& softmax) {
  Tensor coordinates = out_coordinates<Config>();
  CUTE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    int row = get<0>(coordinates(r, 0));
    if (row < rows && threadIdx.x % 4 == 0) lse[std::int64_t{row} * row_stride] = softmax.lse(r);
  }
}

/// Writes the first `rows` rows of a tile of fp32 results.
template <class Config, class Out>
CUTE_DEVICE void store_part(float* to, std::int64_t row_stride, int rows, int dims,
                            const Out& out) {
  Tensor coordinates = out_coordinates<Config>();
  Tensor values = by_rows(out);
  CUTE_UNROLL
  for (int r = 0; r < size<0>(values); ++r) {
    int row = get<0>(coordinates(r, 0));
    CUTE_UNROLL
    for (int c = 0; c < size<1>(values); ++c) {
      int column = get<1>(coordinates(0, c));
      if (row < rows && column < dims) to[row * row_stride + column] = values(r, c);
    }
  }
}

}  // namespace tileattn::cuda
