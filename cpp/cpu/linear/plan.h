// What dispatch.cpp hands to the kernels of linear attention: spans of tokens, states, buffers.
#pragma once

#include <cstdint>

#include "cpu/common/blocks.h"
#include "tileattn/linear_attention.h"

namespace tileattn::cpu {

// Tokens that meet one another as scores; all earlier ones are in the state. Scores cost in
// proportion to it, walks through the state inversely.
constexpr int kChunk = 48;
static_assert(round_up(kMaxLinearDim + 1, kColumnGranule) <= kMaxColumns);  // values, divisor
static_assert(kChunk % kGroup == 0 && kChunk % kColumnGranule == 0 && kChunk <= kPanel);

/// Consecutive tokens of one sequence and head.
struct LinearSpan {
  int batch;  // its entry in the tensors; 0 when packed
  int head;
  int begin, end;  // tokens of that entry
};

/// Rows of a state in scratch. Of the features x_i x_j and x_j x_i, which are equal, it has one.
TILEATTN_HOST_DEVICE int state_rows(const LinearAttentionProblem& p) {
  return p.feature_map == FeatureMap::kTaylor2 ? 1 + p.dim + p.dim * (p.dim + 1) / 2 : p.dim;
}

/// Factors of q, k, and of out and its gradient, on their way between memory and scratch. With
/// taylor2 the score is to be q . k / sqrt(dim), and scale follows the polynomial.
TILEATTN_HOST_DEVICE float key_factor(const LinearAttentionProblem& p) {
  if (p.feature_map == FeatureMap::kNone) return 1.0f;
  return 1.0f / __builtin_sqrtf(__builtin_sqrtf(static_cast<float>(p.dim)));
}
TILEATTN_HOST_DEVICE float query_factor(const LinearAttentionProblem& p) {
  return p.feature_map == FeatureMap::kNone ? p.scale : key_factor(p);
}
TILEATTN_HOST_DEVICE float out_factor(const LinearAttentionProblem& p) {
  return p.feature_map == FeatureMap::kNone ? 1.0f : p.scale;
}

/// Channels of the values; the denominator is one more, whose value is 1.
TILEATTN_HOST_DEVICE int value_dim(const LinearAttentionProblem& p) {
  return p.dim_v + (p.normalize ? 1 : 0);
}
/// In scratch, rows are padded to whole vectors.
TILEATTN_HOST_DEVICE int padded_dim(const LinearAttentionProblem& p) {
  return round_up(p.dim, kColumnGranule);
}
TILEATTN_HOST_DEVICE int padded_value_dim(const LinearAttentionProblem& p) {
  return round_up(value_dim(p), kColumnGranule);
}
/// Elements of the largest of the problem's results.
TILEATTN_HOST_DEVICE std::int64_t result_size(const LinearAttentionProblem& p) {
  return std::int64_t{p.cu_seqlens ? 1 : p.batch} * p.len * p.heads_q * imax(p.dim, p.dim_v);
}
/// Floats of a state in scratch, [state_rows][padded value dim]: S, and z as one more column.
TILEATTN_HOST_DEVICE std::int64_t state_size(const LinearAttentionProblem& p) {
  return std::int64_t{state_rows(p)} * padded_value_dim(p);
}

/// Kernels of one feature map. `scratch` is aligned to 64 bytes and holds as many floats
/// as linear_scratch() says. States are those of the span's head and are brought up to date.
struct LinearKernels {
  /// state: from before the span to after it.
  void (*accumulate)(const LinearAttentionProblem&, LinearSpan, float* state, float* scratch);
  /// The gradient of the state: from after the span to before it.
  void (*accumulate_gradient)(const LinearAttentionBackward&, LinearSpan, float* dstate,
                              float* scratch);
  /// out of the span; state: from before to after it (not causal: that of all tokens).
  void (*forward)(const LinearAttentionForward&, LinearSpan, float* state, float* scratch);
  /// dq of the span, and into dlog_decay what backward_keys completes; state as in forward.
  void (*backward_queries)(const LinearAttentionBackward&, LinearSpan, float* state,
                           float* scratch);
  /// dk, dv and dlog_decay of the span; head: key head. dstates: those of its query heads, from
  /// after the span to before it (not causal: of all tokens). products: <S, dS> for each,
  /// likewise.
  void (*backward_keys)(const LinearAttentionBackward&, LinearSpan, float* dstates,
                        double* products, float* scratch);
  /// One token of one query head; null where there is a feature map.
  void (*step)(const LinearAttentionStep&, int token, int head);
};

/// All kernels of one instruction set.
struct LinearVariant {
  LinearKernels kernels[2];  // by feature map
};

/// Floats of scratch for any of the kernels.
constexpr std::int64_t kTilesPerDim = 5;
TILEATTN_HOST_DEVICE std::int64_t linear_scratch(const LinearAttentionProblem& p) {
  std::int64_t dims = padded_dim(p) + padded_value_dim(p);
  std::int64_t tiles = kTilesPerDim * kPanel * dims + 4 * kChunk * kPanel;
  if (p.feature_map != FeatureMap::kNone)
    return tiles + kPanel * (3 * std::int64_t{state_rows(p)} + padded_value_dim(p));
  return tiles + std::int64_t{padded_value_dim(p)} * padded_dim(p);  // a state, transposed
}

}  // namespace tileattn::cpu
