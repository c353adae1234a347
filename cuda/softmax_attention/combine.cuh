// Merges the parts of a forward whose keys were split.
//
// Grid: rows / 4; a warp owns one (token, head) row. No shared memory.
#pragma once

#include "epilogue.cuh"

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

  float top = -INFINITY;
  for (int s = 0; s < parts.splits; ++s) top = fmaxf(top, parts.lse[s * rows + row]);
  float base = top == -INFINITY ? 0.0f : top, sum = 0.0f;
  for (int s = 0; s < parts.splits; ++s)
    sum += exp2_approx((parts.lse[s * rows + row] - base) * kLog2E);
  float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  int lane = threadIdx.x % 32;
  if (lane == 0) problem.lse[row] = sum == 0.0f ? -INFINITY : base + logf(sum);

  int entry = int(token / problem.len_q);
  Element* out = token_pointer<Element>(problem, problem.out, entry, token % problem.len_q, head);
  for (int column = lane; column < problem.dim_v; column += 32) {
    float value = 0.0f;
    for (int s = 0; s < parts.splits; ++s) {
      float weight = exp2_approx((parts.lse[s * rows + row] - base) * kLog2E) * inverse;
      value += weight * parts.out[(s * rows + row) * problem.dim_v + column];
    }
    out[column] = Element(value);
  }
}

}  // namespace tileattn::cuda
