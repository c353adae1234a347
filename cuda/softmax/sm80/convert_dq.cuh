// From the workspace of dQ, which the key-major kernel adds to, to dq.
//
// Grid: query slots x heads_q, the slot running fastest; a block turns one tile of the workspace
// into rows of dq. The workspace keeps each tile in the order of the product's registers, value n
// of thread t at n * kThreads + t, so that both sides touch it in whole cache lines. Shared memory:
// the tile, rounded.
#pragma once

#include "common/sm80/copy.cuh"
#include "config.cuh"
#include "softmax/params.h"
#include "softmax/sequence_tiles.cuh"

namespace tileattn::cuda {

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads)
    convert_dq_kernel(const __grid_constant__ BackwardParams params) {
  using Element = typename Config::Element;
  using Layout = typename Config::QuerySmem::Plain;
  __shared__ alignas(128) Element tile[Config::kQueries * Config::kDim];
  const AttentionBackward& problem = params.problem;
  auto slots = Tiles<Config, Pattern>::query_slots(problem, params.plan);
  int slot = blockIdx.x % slots.count(), head = blockIdx.x / slots.count();
  auto tiles = Tiles<Config, Pattern>::of_slot(problem, params.plan, slots, slot, head);
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
