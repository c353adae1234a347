// The forward kernel of Hopper and its launch.
//
// Grid: a block for each multiprocessor, at most; for_each_work tells each what
// to do. Block: the consumer warpgroups, then the producer warpgroup.
// Shared memory: Q, which out takes the place of; rings of K and of V; barriers.
#pragma once

// Before the first header of CuTe: wgmma of every width, not only of the usual ones.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED

#include <algorithm>

#include <cutlass/arch/reg_reconfig.h>

#include "mainloop.cuh"
#include "softmax/epilogue.cuh"
#include "softmax/launch.cuh"
#include "softmax/splits.h"

namespace tileattn::cuda {

struct ForwardSm90Params {
  AttentionForward problem;
  Schedule schedule;
  ForwardMaps maps;
};

template <class Config>
CUTE_DEVICE void init_barriers(ForwardSm90Shared<Config>& shared) {
  if (threadIdx.x == 0) {
    for (auto& ring : shared.q_ring) ring.init(1, 1);
    shared.k_ring.init(1, 4 * Config::kConsumers);
    shared.v_ring.init(1, 4 * Config::kConsumers);
    fence_barrier_init();
  }
  __syncthreads();
}

template <class Config, class Pattern>
CUTE_DEVICE void produce(const ForwardSm90Params& params, ForwardSm90Shared<Config>& shared) {
  // One warp brings keys and values, one queries.
  enum Role { kKeys, kQueries };
  int warp = cutlass::canonical_warp_idx_sync() % 4;
  if (warp > kQueries || !elect_one_sync()) return;
  ProducerSm90<Config, Pattern> producer(shared, params.maps);
  for_each_work<Config>(params.schedule, params.problem,
                        [&](const Sequence& sequence, int head, int query_tile) {
                          if (warp == kQueries) producer.bring_queries(sequence, head, query_tile);
                          else producer.bring_keys(params.problem, sequence, head, query_tile);
                        });
}

template <class Config, class Pattern, Modifiers kModifiers>
CUTE_DEVICE void consume(const ForwardSm90Params& params, ForwardSm90Shared<Config>& shared,
                         int warpgroup) {
  const AttentionForward& problem = params.problem;
  ConsumerSm90<Config, Pattern> consumer(shared, warpgroup);
  for_each_work<Config>(
      params.schedule, problem, [&](const Sequence& sequence, int head, int query_tile) {
        int rows = sequence.len_q - query_tile * Config::kQueries;
        Tiles<Config, Pattern> tiles(problem, sequence, head, query_tile, rows);
        VisibleScores<Config, Pattern, kModifiers> visible(problem, tiles, head, nullptr);
        Tensor out = consumer.make_out();
        OnlineSoftmax<decltype(size<0>(by_rows(out)))::value> softmax(
            problem.sinks ? problem.sinks[head] : -INFINITY, visible.natural());
        consumer.run(visible, tiles.keys(), out, softmax);
        softmax.finish(by_rows(out));
        store_lse<Config>(problem, tiles.result_rows(problem.lse, 1, query_tile, head), softmax);
        if (problem.out_low)
          store_low_parts<Config>(
              problem, tiles.result_rows(problem.out_low, problem.dim_v, query_tile, head), out);
        consumer.store(params.maps, sequence, head, query_tile, out);
      });
}

template <class Config, class Pattern, Modifiers kModifiers>
__global__ void __launch_bounds__(Config::kThreads, 1)
    forward_sm90_kernel(const __grid_constant__ ForwardSm90Params params) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ForwardSm90Shared<Config>*>(shared_bytes);
  init_barriers(shared);
  int warpgroup = cutlass::canonical_warp_group_idx();
  if (warpgroup == Config::kConsumers) {
    cutlass::arch::warpgroup_reg_dealloc<Config::kProducerRegisters>();
    produce<Config, Pattern>(params, shared);
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::kConsumerRegisters>();
    consume<Config, Pattern, kModifiers>(params, shared, warpgroup);
  }
}

template <class Element, int kDim, SharedBudget kBudget>
struct ForwardSm90Launch {
  template <class Pattern, Modifiers kModifiers>
  using Config = typename ForwardSm90Tile<Element, kDim, Pattern, kModifiers>::type;
  using LargestConfig = Config<Dense, Modifiers::kNone>;
  template <class /*Pattern*/>
  static constexpr int kSharedBytes = int(sizeof(ForwardSm90Shared<LargestConfig>));
  static_assert(kSharedBytes<Dense> <= bytes_of(kBudget));

  template <class /*Pattern*/>
  static std::size_t workspace(const AttentionForward&) {
    return 0;
  }

  /// Few queries against many keys go to the sm_80 kernel, which splits the keys.
  static bool suits(const AttentionForward& problem) {
    std::int64_t blocks =
        std::int64_t{query_slots(problem, LargestConfig::kQueries).count()} * problem.heads_q;
    int key_tiles = tileattn::ceil_div(problem.len_k, LargestConfig::kKeys);
    return can_map(problem.q, problem.len_q) && can_map(problem.k, problem.len_k) &&
           can_map(problem.v, problem.len_k) &&
           choose_splits(blocks, key_tiles, multiprocessors()) == 1;
  }

  template <class Pattern>
  static void run(const AttentionForward& problem, void*, cudaStream_t stream) {
    if (plain(problem)) run_with<Pattern, Modifiers::kNone>(problem, stream);
    else run_with<Pattern, Modifiers::kAny>(problem, stream);
  }

 private:
  template <class Pattern, Modifiers kModifiers>
  static void run_with(const AttentionForward& problem, cudaStream_t stream) {
    using Tile = Config<Pattern, kModifiers>;
    static_assert(sizeof(ForwardSm90Shared<Tile>) <= kSharedBytes<Pattern>);
    int entries = problem.cu_seqlens_q ? 1 : problem.batch;
    auto map = [&](const auto& tensor, int rows, int tokens, int heads, int dims) {
      return make_tile_map(tensor, problem.dtype, rows, entries, tokens, heads, dims);
    };
    constexpr int kRows = Tile::kRowsOfConsumer;
    ForwardSm90Params params{
        problem,
        make_schedule(problem, Tile::kQueries, device_attribute(cudaDevAttrL2CacheSize)),
        {map(problem.q, kRows, problem.len_q, problem.heads_q, problem.dim),
         map(problem.k, Tile::kKeys, problem.len_k, problem.heads_kv, problem.dim),
         map(problem.v, Tile::kKeys, problem.len_k, problem.heads_kv, problem.dim_v),
         map(problem.out, kRows, problem.len_q, problem.heads_q, problem.dim_v)}};
    launch(forward_sm90_kernel<Tile, Pattern, kModifiers>,
           std::min(params.schedule.count(), multiprocessors()), Tile::kThreads,
           int(sizeof(ForwardSm90Shared<Tile>)), stream, params);
  }
};

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<ForwardKernels> forward_sm90() {
  return {dtype_of<Element>(), kDim, Architecture::kSm90, kBudget,
          kernels_of_sequences<ForwardSm90Launch<Element, kDim, kBudget>, AttentionForward>()};
}

}  // namespace tileattn::cuda
