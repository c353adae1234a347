// The row-wise kernels before and after the tile loops.
//
// delta_kernel. Grid: rows / 8; a warp owns one (token, head) row of out.
// convert_dq_kernel. Grid: query slots x heads_q, the slot running fastest; a
// block turns one tile of the dQ workspace into rows of dq. The workspace keeps
// each tile in the order of the product's registers, value n of thread t at
// n * kThreads + t, so that both sides touch it in whole cache lines. Shared
// memory: the tile, rounded.
#pragma once

#include "backward_config.cuh"
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

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads)
    convert_dq_kernel(const __grid_constant__ BackwardParams params) {
  using Element = typename Config::Element;
  using Layout = typename Config::QuerySmem::Plain;
  __shared__ alignas(128) Element tile[Config::kQueries * Config::kDim];
  const AttentionBackward& problem = params.problem;
  auto slots = Tiles<Config, Pattern>::query_slots(problem, params.plan);
  int slot = blockIdx.x % slots.count(), head = blockIdx.x / slots.count();
  auto tiles = Tiles<Config, Pattern>::of_slot(problem, params.plan, slots, slot);
  if (!tiles.exists()) return;

  typename Config::QueryGradMma mma;
  Tensor dq = partition_fragment_C(mma, Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
  const float* from =
      params.dq_sum + threadIdx.x +
      (std::int64_t{slot} * problem.heads_q + head) * Config::kQueries * Config::kDim;
  CUTE_UNROLL
  for (int n = 0; n < size(dq); ++n) dq(n) = problem.scale * from[n * Config::kThreads];
  round_to_shared(mma, dq, tile, Layout{});
  __syncthreads();
  store_rows<Config>(tile, Layout{}, tiles.template own_query_rows<Element>(problem.dq, head),
                     problem.dim);
}

}  // namespace tileattn::cuda
