// What the kernels of softmax attention are told.
#pragma once

#include "grid_plan.h"
#include "tileattn/attention.h"

namespace tileattn::cuda {

/// Rows of lse, over all sequences.
TILEATTN_HOST_DEVICE std::int64_t rows_of(const AttentionProblem& problem) {
  std::int64_t entries = problem.cu_seqlens_q ? 1 : problem.batch;
  return entries * problem.len_q * problem.heads_q;
}

/// Results of `splits` parts of the keys; null where keys are not split.
struct Partials {
  float* out = nullptr;  // [splits, rows, dim_v], a row being a (token, query head)
  float* max = nullptr;  // [splits, rows], logits in the loop's unit
  float* sum = nullptr;  // [splits, rows], relative to them
  int splits = 1;
};

struct ForwardParams {
  AttentionForward problem;
  Partials partials;
  GridPlan plan;
};

struct BackwardParams {
  AttentionBackward problem;
  float* dq_sum;  // see convert_dq.cuh; null: the key-major kernel leaves dQ out
  GridPlan plan;
};

}  // namespace tileattn::cuda
