// The forward kernel and its launch.
//
// Grid: query slots x heads_q x splits, as one index. The slots of a head follow
// each other, the last first: under a causal pattern those visit the most keys.
// Block: one query tile of one head against its key tiles, or against the
// split's share of them.
// Shared memory: Q; kStages of K and of V. At the end out takes the place of Q.
#pragma once

#include <algorithm>

#include "combine.cuh"
#include "launch.cuh"
#include "mainloop_sm80.cuh"
#include "splits.h"

namespace tileattn::cuda {

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads)
    forward_kernel(const __grid_constant__ ForwardParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<ForwardShared<Config>*>(shared_memory);
  const AttentionForward& problem = params.problem;
  TileSlots slots = query_slots(problem, Config::kQueries);
  int slot = slots.count() - 1 - blockIdx.x % slots.count();
  int head = blockIdx.x / slots.count() % problem.heads_q;
  int split = blockIdx.x / slots.count() / problem.heads_q;
  Sequence sequence(problem, slots.owner(slot));
  int query_tile = slot - slots.first(sequence.index);
  if (query_tile * Config::kQueries >= sequence.len_q) return;

  MainloopSm80<Config, Pattern> mainloop(problem, sequence, head, query_tile);
  auto walk = mainloop.walk();
  int share = tileattn::ceil_div(walk.size(), params.partials.splits);
  int begin = imin(split * share, walk.size()), end = imin(begin + share, walk.size());

  Tensor out = partition_fragment_C(typename Config::ScoreMma{},
                                    Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
  clear(out);
  constexpr int kRows = decltype(size<0>(by_rows(out)))::value;
  OnlineSoftmax<kRows> softmax(problem.sinks && split == 0 ? problem.sinks[head] : -INFINITY);
  mainloop.run(shared, walk, begin, end, out, softmax);
  softmax.finish(by_rows(out));

  int first = query_tile * Config::kQueries, rows = sequence.len_q - first;
  std::int64_t row = first_row(problem, sequence, head, first);
  if (params.partials.out) {
    row += split * rows_of(problem);
    store_lse<Config>(params.partials.lse + row, problem.heads_q, rows, softmax);
    store_part<Config>(params.partials.out + row * problem.dim_v,
                       std::int64_t{problem.heads_q} * problem.dim_v, rows, problem.dim_v, out);
  } else {
    store_lse<Config>(problem.lse + row, problem.heads_q, rows, softmax);
    mainloop.store(shared, out);
  }
}

template <class Element, int kDim, SharedBudget kBudget>
struct ForwardLaunch {
  using Config = typename ForwardTile<Element, kDim>::type;
  static constexpr int kSharedBytes = int(sizeof(ForwardShared<Config>));
  static_assert(kSharedBytes <= bytes_of(kBudget));

  static int splits(const AttentionForward& problem) {
    std::int64_t blocks =
        std::int64_t{query_slots(problem, Config::kQueries).count()} * problem.heads_q;
    return choose_splits(blocks, tileattn::ceil_div(problem.len_k, Config::kKeys),
                         multiprocessors());
  }

  static bool suits(const AttentionForward&) { return true; }

  static std::size_t workspace(const AttentionForward& problem) {
    int parts = splits(problem);
    return parts == 1 ? 0 : parts * rows_of(problem) * (problem.dim_v + 1) * sizeof(float);
  }

  template <class Pattern>
  static void run(const AttentionForward& problem, void* memory, cudaStream_t stream) {
    ForwardParams params{problem, {}};
    Partials& parts = params.partials;
    parts.splits = splits(problem);
    if (parts.splits > 1) {
      parts.out = static_cast<float*>(memory);
      parts.lse = parts.out + parts.splits * rows_of(problem) * problem.dim_v;
    }
    std::int64_t tiles = query_slots(problem, Config::kQueries).count();
    launch(forward_kernel<Config, Pattern>, tiles * problem.heads_q * parts.splits,
           Config::kThreads, kSharedBytes, stream, params);
    if (parts.splits > 1)
      launch(combine_kernel<Element>, (rows_of(problem) + kCombineWarps - 1) / kCombineWarps,
             kCombineWarps * 32, 0, stream, params);
  }
};

}  // namespace tileattn::cuda
