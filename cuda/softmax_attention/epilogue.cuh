// Epilogue: out and lse leave the loop, either for good or as one part of the
// keys (split), in fp32, for combine_kernel to merge.
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

template <class Config, int kRows, class Out>
CUTE_DEVICE void store_forward(const ForwardParams& params, const Sequence& sequence, int head,
                               int query_tile, int split, Out& out,
                               const OnlineSoftmax<kRows>& softmax,
                               typename Config::Element* shared_q) {
  using Element = typename Config::Element;
  using Mma = typename Config::ScoreMma;
  using QuerySmem = typename Config::QuerySmem;
  const AttentionForward& problem = params.problem;
  int first = query_tile * Config::kQueries, rows = sequence.len_q - first;
  std::int64_t token = std::int64_t{sequence.first_q} + first;
  std::int64_t lse_row =
      (std::int64_t{sequence.entry} * problem.len_q + token) * problem.heads_q + head;
  std::int64_t part = split * rows_of(problem);
  float* lse = params.partials.lse ? params.partials.lse + part : problem.lse;

  Tensor coordinates = by_rows(
      Mma{}
          .get_slice(threadIdx.x)
          .partition_C(make_identity_tensor(Shape<Int<Config::kQueries>, Int<Config::kDim>>{})));
  Tensor values = by_rows(out);
  CUTE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    int row = get<0>(coordinates(r, 0));
    float inverse = softmax.inverse_sum(r);
    CUTE_UNROLL
    for (int c = 0; c < size<1>(values); ++c) values(r, c) *= inverse;
    if (row >= rows) continue;
    std::int64_t at = lse_row + std::int64_t{row} * problem.heads_q;
    if (threadIdx.x % 4 == 0) lse[at] = softmax.lse(r);
    if (!params.partials.out) continue;
    float* to = params.partials.out + (part + at) * problem.dim_v;
    CUTE_UNROLL
    for (int c = 0; c < size<1>(values); ++c) {
      int column = get<1>(coordinates(0, c));
      if (column < problem.dim_v) to[column] = values(r, c);
    }
  }
  if (params.partials.out) return;
  round_to_shared(Mma{}, out, shared_q, typename QuerySmem::Plain{});
  __syncthreads();
  store_rows<Config>(shared_q, typename QuerySmem::Plain{},
                     row_pointer<Element>(problem.out, sequence.entry, token, head),
                     problem.out.token_stride, rows, problem.dim_v);
}

}  // namespace tileattn::cuda
