// Launches the backward kernels of one (element, head-dim bucket, pattern).
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "backward_rows.cuh"

namespace tileattn::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("attention_backward: ") + cudaGetErrorString(error));
}

/// Launches `kernel`, which reads `argument`, unless there is nothing to do.
template <class Argument>
void launch(void (*kernel)(Argument), std::int64_t blocks, int threads, std::size_t shared_bytes,
            cudaStream_t stream, const Argument& argument) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error("attention_backward: too many tiles");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(shared_bytes)));
  kernel<<<unsigned(blocks), threads, shared_bytes, stream>>>(argument);
  check(cudaGetLastError());
}

template <class Config>
std::size_t dq_sum_bytes(const AttentionBackward& problem) {
  std::size_t tiles = std::size_t(query_slots(problem, Config::kQueries).count());
  return tiles * problem.heads_q * Config::kQueries * Config::kDim * sizeof(float);
}

template <class Element, int kDim, class Pattern, SharedBudget kBudget>
struct BackwardLaunch {
  using KeyConfig = typename KeyMajorTile<Element, kDim, kBudget>::type;
  using QueryConfig = typename QueryMajorTile<Element, kDim, kBudget>::type;
  static_assert(sizeof(KeyMajorShared<KeyConfig>) <= bytes_of(kBudget));
  static_assert(sizeof(QueryMajorShared<QueryConfig>) <= bytes_of(kBudget));

  static void run(const AttentionBackward& problem, void* workspace, cudaStream_t stream) {
    std::int64_t entries = problem.cu_seqlens_q ? 1 : problem.batch;
    std::int64_t rows = entries * problem.len_q * problem.heads_q;
    launch(delta_kernel<Element>, (rows + kDeltaWarps - 1) / kDeltaWarps, kDeltaWarps * 32, 0,
           stream, problem);

    BackwardParams params{problem, nullptr};
    if (!problem.deterministic) {
      params.dq_sum = static_cast<float*>(workspace);
      check(cudaMemsetAsync(workspace, 0, dq_sum_bytes<KeyConfig>(problem), stream));
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
      launch(convert_dq_kernel<KeyConfig>, tiles * problem.heads_q, KeyConfig::kThreads, 0,
             stream, params);
    }
  }
};

}  // namespace tileattn::cuda
