// Launches the backward kernels of one element type, head-dim bucket and budget.
#pragma once

#include <algorithm>

#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "backward_rows.cuh"
#include "launch.cuh"

namespace tileattn::cuda {

template <class Config>
std::size_t dq_sum_bytes(const AttentionBackward& problem) {
  std::size_t tiles = std::size_t(query_slots(problem, Config::kQueries).count());
  return tiles * problem.heads_q * Config::kQueries * Config::kDim * sizeof(float);
}

template <class Element, int kDim, SharedBudget kBudget>
struct BackwardLaunch {
  using KeyConfig = typename BackwardConfigs<Element, kDim, kBudget>::KeyMajor;
  using QueryConfig = typename BackwardConfigs<Element, kDim, kBudget>::QueryMajor;
  static constexpr int kSharedBytes =
      int(std::max(sizeof(KeyMajorShared<KeyConfig>), sizeof(QueryMajorShared<QueryConfig>)));
  static_assert(kSharedBytes <= bytes_of(kBudget));

  static bool suits(const AttentionBackward&) { return true; }

  static std::size_t workspace(const AttentionBackward& problem) {
    return problem.deterministic ? 0 : dq_sum_bytes<KeyConfig>(problem);
  }

  template <class Pattern>
  static void run(const AttentionBackward& problem, void* workspace, cudaStream_t stream) {
    std::int64_t entries = problem.cu_seqlens_q ? 1 : problem.batch;
    std::int64_t rows = entries * problem.len_q * problem.heads_q;
    launch(delta_kernel<Element>, (rows + kDeltaWarps - 1) / kDeltaWarps, kDeltaWarps * 32, 0,
           stream, problem);

    BackwardParams params{problem, nullptr};
    if (!problem.deterministic) {
      params.dq_sum = static_cast<float*>(workspace);
      check(cudaMemsetAsync(params.dq_sum, 0, dq_sum_bytes<KeyConfig>(problem), stream));
    }
    std::int64_t key_tiles = key_slots(problem, KeyConfig::kKeys).count();
    launch(backward_keys_kernel<KeyConfig, Pattern>, key_tiles * problem.heads_kv,
           KeyConfig::kThreads, sizeof(KeyMajorShared<KeyConfig>), stream, params);
    if (problem.deterministic) {
      std::int64_t tiles = query_slots(problem, QueryConfig::kQueries).count();
      launch(backward_queries_kernel<QueryConfig, Pattern>, tiles * problem.heads_q,
             QueryConfig::kThreads, sizeof(QueryMajorShared<QueryConfig>), stream, params);
    } else {
      std::int64_t tiles = query_slots(problem, KeyConfig::kQueries).count();
      launch(convert_dq_kernel<KeyConfig>, tiles * problem.heads_q, KeyConfig::kThreads, 0, stream,
             params);
    }
  }
};

}  // namespace tileattn::cuda
