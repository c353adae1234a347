// Merges the parts of a forward whose keys were split.
//
// Grid: rows / 4; a warp owns one (token, head) row. No shared memory.
#pragma once

#include "params.h"
#include "row_sum.cuh"
#include "sequence.cuh"
#include "tileattn/low_part.h"

namespace tileattn::cuda {

constexpr int kCombineWarps = 4;

template <class Element>
__global__ void __launch_bounds__(kCombineWarps * 32)
    combine_kernel(const __grid_constant__ ForwardParams params) {
  const AttentionForward& problem = params.problem;
  const Partials& parts = params.partials;
  std::int64_t rows = rows_of(problem);
  std::int64_t row = std::int64_t{blockIdx.x} * kCombineWarps + threadIdx.x / 32;
  if (row >= rows) return;
  int head = int(row % problem.heads_q);
  std::int64_t token = row / problem.heads_q;
  if (problem.cu_seqlens_q && token >= problem.cu_seqlens_q[problem.batch]) return;

  const bool natural = natural_logits(problem);
  float top = -INFINITY;
  for (int s = 0; s < parts.splits; ++s) top = fmaxf(top, parts.max[s * rows + row]);
  float base = top == -INFINITY ? 0.0f : top, sum = 0.0f;
  auto weight_of = [&](int s) {
    return parts.sum[s * rows + row] * exp_of_logit(parts.max[s * rows + row] - base, natural);
  };
  for (int s = 0; s < parts.splits; ++s) sum += weight_of(s);
  float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  int lane = threadIdx.x % 32;
  if (lane == 0) {
    TwoFloats lse = lse_of(top, sum, natural);
    problem.lse[row] = lse.high;
    if (problem.lse_low) problem.lse_low[row] = lse.low;
  }

  int entry = int(token / problem.len_q);
  Element* out = token_pointer<Element>(problem, problem.out, entry, token % problem.len_q, head);
  for (int column = lane; column < problem.dim_v; column += 32) {
    float value = 0.0f;
    for (int s = 0; s < parts.splits; ++s)
      value += weight_of(s) * parts.out[(s * rows + row) * problem.dim_v + column];
    value *= inverse;
    out[column] = Element(value);
    if (problem.out_low)
      problem.out_low[row * problem.dim_v + column] =
          low_part(value, float(out[column]), problem.dtype);
  }
}

}  // namespace tileattn::cuda
