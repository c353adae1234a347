// What the backward needs of each row before its tile loops.
//
// Grid: rows / 8; a warp owns one (token, head) row of out. No shared memory.
#pragma once

#include <cute/tensor.hpp>

#include "sequence.cuh"
#include "tileattn/low_part.h"

namespace tileattn::cuda {

constexpr int kDeltaWarps = 8;

/// delta = rowsum(dout * out) - dlse
template <class Element>
__global__ void __launch_bounds__(kDeltaWarps * 32)
    delta_kernel(const __grid_constant__ AttentionBackward problem) {
  int entries = problem.cu_seqlens_q ? 1 : problem.batch;
  std::int64_t row = std::int64_t{blockIdx.x} * kDeltaWarps + threadIdx.x / 32;
  if (row >= std::int64_t{entries} * problem.len_q * problem.heads_q) return;
  int head = int(row % problem.heads_q), lane = threadIdx.x % 32;
  std::int64_t token = row / problem.heads_q;
  int entry = int(token / problem.len_q);
  token %= problem.len_q;

  auto* out = token_pointer<const Element>(problem, problem.out, entry, token, head);
  auto* dout = token_pointer<const Element>(problem, problem.dout, entry, token, head);
  float sum = 0.0f;
  for (int column = lane * 8; column < problem.dim_v; column += 32 * 8) {
    auto out8 = *reinterpret_cast<const cutlass::AlignedArray<Element, 8>*>(out + column);
    cutlass::AlignedArray<std::int8_t, 8> low8{};
    if (problem.out_low)
      low8 = *reinterpret_cast<const cutlass::AlignedArray<std::int8_t, 8>*>(
          problem.out_low + row * problem.dim_v + column);
    auto dout8 = *reinterpret_cast<const cutlass::AlignedArray<Element, 8>*>(dout + column);
    CUTE_UNROLL
    for (int n = 0; n < 8; ++n)
      sum += with_low_part(float(out8[n]), low8[n], problem.dtype) * float(dout8[n]);
  }
  CUTE_UNROLL
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (lane == 0) problem.delta[row] = sum - (problem.dlse ? problem.dlse[row] : 0.0f);
}

}  // namespace tileattn::cuda
