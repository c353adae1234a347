// Launches the backward kernels of one element type, head-dim bucket and budget.
#pragma once

#include <algorithm>

#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "convert_dq.cuh"
#include "softmax/delta.cuh"
#include "softmax/launch.cuh"

namespace tileattn::cuda {

template <class Config, class Pattern>
std::size_t dq_sum_bytes(const AttentionBackward& problem, const GridPlan& plan) {
  std::size_t tiles = std::size_t(Tiles<Config, Pattern>::query_slots(problem, plan).count());
  return tiles * problem.heads_q * Config::kQueries * Config::kDim * sizeof(float);
}

template <class Element, int kDim, SharedBudget kBudget>
struct BackwardLaunch {
  template <class Pattern>
  using KeyMajor = typename BackwardConfigs<Element, kDim, kBudget, Pattern>::KeyMajor;
  template <class Pattern>
  using QueryMajor = typename BackwardConfigs<Element, kDim, kBudget, Pattern>::QueryMajor;
  template <class Pattern>
  static constexpr int kSharedBytes =
      int(std::max(sizeof(KeyMajorShared<KeyMajor<Pattern>, Pattern>),
                   sizeof(QueryMajorShared<QueryMajor<Pattern>, Pattern>)));

  static bool suits(const AttentionBackward&) { return true; }

  template <class Pattern>
  static std::size_t workspace(const AttentionBackward& problem) {
    using KeyConfig = KeyMajor<Pattern>;
    if (problem.deterministic) return 0;
    return dq_sum_bytes<KeyConfig, Pattern>(problem, Tiles<KeyConfig, Pattern>::plan(problem));
  }

  template <class Pattern>
  static void run(const AttentionBackward& problem, void* workspace, cudaStream_t stream) {
    std::int64_t entries = problem.cu_seqlens_q ? 1 : problem.batch;
    std::int64_t rows = entries * problem.len_q * problem.heads_q;
    launch(delta_kernel<Element>, (rows + kDeltaWarps - 1) / kDeltaWarps, kDeltaWarps * 32, 0,
           stream, problem);

    using KeyConfig = KeyMajor<Pattern>;
    using QueryConfig = QueryMajor<Pattern>;
    using KeyTiles = Tiles<KeyConfig, Pattern>;
    using QueryTiles = Tiles<QueryConfig, Pattern>;
    static_assert(kSharedBytes<Pattern> <= bytes_of(kBudget));
    BackwardParams params{problem, nullptr, KeyTiles::plan(problem)};
    if (!problem.deterministic) {
      params.dq_sum = static_cast<float*>(workspace);
      check(cudaMemsetAsync(params.dq_sum, 0,
                            dq_sum_bytes<KeyConfig, Pattern>(problem, params.plan), stream));
    }
    std::int64_t key_tiles = KeyTiles::key_slots(problem, params.plan).count();
    launch(backward_keys_kernel<KeyConfig, Pattern>, key_tiles * problem.heads_kv,
           KeyConfig::kThreads, sizeof(KeyMajorShared<KeyConfig, Pattern>), stream, params);
    if (problem.deterministic) {
      params.plan = QueryTiles::plan(problem);
      std::int64_t tiles = QueryTiles::query_slots(problem, params.plan).count();
      launch(backward_queries_kernel<QueryConfig, Pattern>, tiles * problem.heads_q,
             QueryConfig::kThreads, sizeof(QueryMajorShared<QueryConfig, Pattern>), stream, params);
    } else {
      std::int64_t tiles = KeyTiles::query_slots(problem, params.plan).count();
      launch(convert_dq_kernel<KeyConfig, typename KeyTiles::AnyPattern>, tiles * problem.heads_q,
             KeyConfig::kThreads, 0, stream, params);
    }
  }
};

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<BackwardKernels> backward_sm80() {
  return {dtype_of<Element>(), kDim, Architecture::kSm80, kBudget,
          kernels_of_sequences<BackwardLaunch<Element, kDim, kBudget>, AttentionBackward>()};
}

}  // namespace tileattn::cuda
