// The forward kernel and its launch.
//
// Grid: query slots x heads_q x splits, as one index. The slots of a head follow
// each other, the last first: under a causal pattern those visit the most keys.
// Block: one query tile of one head against its key tiles, or against the
// split's share of them.
// Shared memory: Q; kStages of K and of V. At the end out takes the place of Q.
#pragma once

#include <algorithm>

#include "mainloop.cuh"
#include "softmax/combine.cuh"
#include "softmax/epilogue.cuh"
#include "softmax/launch.cuh"
#include "softmax/splits.h"

namespace tileattn::cuda {

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads)
    forward_kernel(const __grid_constant__ ForwardParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<ForwardShared<Config, Pattern>*>(shared_memory);
  const AttentionForward& problem = params.problem;
  auto slots = Tiles<Config, Pattern>::query_slots(problem, params.plan);
  int slot = slots.count() - 1 - blockIdx.x % slots.count();
  int head = blockIdx.x / slots.count() % problem.heads_q;
  int split = blockIdx.x / slots.count() / problem.heads_q;
  auto tiles = Tiles<Config, Pattern>::of_slot(problem, params.plan, slots, slot, head);
  if (!tiles.attends()) return;

  MainloopSm80<Config, Pattern> mainloop(problem, tiles, head, shared);
  Tensor out = partition_fragment_C(typename Config::ScoreMma{},
                                    Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
  clear(out);
  constexpr int kRows = decltype(size<0>(by_rows(out)))::value;
  OnlineSoftmax<kRows> softmax(problem.sinks && split == 0 ? problem.sinks[head] : -INFINITY,
                               mainloop.natural());
  mainloop.run(shared, tiles.keys().part(split, params.partials.splits), out, softmax);
  softmax.finish(by_rows(out));

  const Partials& parts = params.partials;
  if (parts.out) {
    std::int64_t first = split * rows_of(problem);
    Partials own{nullptr, parts.max + first, parts.sum + first};
    store_sums<Config>(own, tiles.result_rows(own.max, 1, tiles.own(), head), softmax);
    store_part<Config>(
        tiles.result_rows(parts.out + first * problem.dim_v, problem.dim_v, tiles.own(), head),
        problem.dim_v, out);
  } else {
    store_lse<Config>(problem, tiles.result_rows(problem.lse, 1, tiles.own(), head), softmax);
    if (problem.out_low)
      store_low_parts<Config>(
          problem, tiles.result_rows(problem.out_low, problem.dim_v, tiles.own(), head), out);
    mainloop.store(shared, out);
  }
}

template <class Element, int kDim, SharedBudget kBudget>
struct ForwardLaunch {
  using Config = typename ForwardTile<Element, kDim>::type;
  template <class Pattern>
  static constexpr int kSharedBytes = int(sizeof(ForwardShared<Config, Pattern>));

  static bool suits(const AttentionForward&) { return true; }

  template <class Pattern>
  static std::size_t workspace(const AttentionForward& problem) {
    int parts = splits<Pattern>(problem, Tiles<Config, Pattern>::plan(problem));
    return parts == 1 ? 0 : parts * rows_of(problem) * (problem.dim_v + 2) * sizeof(float);
  }

  template <class Pattern>
  static void run(const AttentionForward& problem, void* memory, cudaStream_t stream) {
    static_assert(kSharedBytes<Pattern> <= bytes_of(kBudget));
    ForwardParams params{problem, {}, Tiles<Config, Pattern>::plan(problem)};
    Partials& parts = params.partials;
    parts.splits = splits<Pattern>(problem, params.plan);
    if (parts.splits > 1) {
      parts.out = static_cast<float*>(memory);
      parts.max = parts.out + parts.splits * rows_of(problem) * problem.dim_v;
      parts.sum = parts.max + parts.splits * rows_of(problem);
    }
    std::int64_t tiles = Tiles<Config, Pattern>::query_slots(problem, params.plan).count();
    launch(forward_kernel<Config, Pattern>, tiles * problem.heads_q * parts.splits,
           Config::kThreads, kSharedBytes<Pattern>, stream, params);
    if (parts.splits > 1)
      launch(combine_kernel<Element>, (rows_of(problem) + kCombineWarps - 1) / kCombineWarps,
             kCombineWarps * 32, 0, stream, params);
  }

 private:
  template <class Pattern>
  static int splits(const AttentionForward& problem, const GridPlan& plan) {
    using PatternTiles = Tiles<Config, Pattern>;
    std::int64_t blocks =
        std::int64_t{PatternTiles::query_slots(problem, plan).count()} * problem.heads_q;
    return choose_splits(blocks, PatternTiles::most_visits(problem, plan), multiprocessors());
  }
};

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<ForwardKernels> forward_sm80() {
  return {dtype_of<Element>(), kDim, Architecture::kSm80, kBudget,
          kernels_of_sequences<ForwardLaunch<Element, kDim, kBudget>, AttentionForward>()};
}

}  // namespace tileattn::cuda
