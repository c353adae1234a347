// Linear attention: a state S of [dim, dim_v] takes the place of the keys and values.
//
//   S_t = lambda_t S_{t-1} + k_t v_t^T        lambda_t = exp(log_decay_t) <= 1
//   out_t = scale * q_t^T S_t                 (key head = query head / (heads_q / heads_kv))
//
// normalize: out_t = (q_t^T S_t) / (q_t^T z_t) with z_t = lambda_t z_{t-1} + k_t, and 0 where
// the denominator is. Not causal: every query reads the state after the last token (no decay).
//
// With a feature map, phi(q) and phi(k) take the place of q and k, and the state is
// [feature_dim, dim_v].
#pragma once

#include <cstddef>
#include <cstdint>

#include "tileattn/executor.h"
#include "tileattn/tensor_ref.h"

namespace tileattn {

/// Feature maps that the kernels apply themselves; features are never in memory.
/// kTaylor2: phi(x) = [1, x / dim^(1/4), vec(x x^T) / sqrt(2 dim)], so that
/// phi(q) . phi(k) = 1 + a + a^2 / 2 with a = q . k / sqrt(dim).
enum class FeatureMap : std::int8_t { kNone, kTaylor2 };

constexpr int feature_dim(FeatureMap map, int dim) {
  return map == FeatureMap::kTaylor2 ? 1 + dim + dim * dim : dim;
}

/// States of every sequence and query head, fp32, contiguous.
template <class Float>
struct BasicStateRef {
  Float* s = nullptr;  // [sequences, heads_q, feature_dim, dim_v], or null
  Float* z = nullptr;  // [sequences, heads_q, feature_dim], where normalize; given with s
};

using StateRef = BasicStateRef<float>;
using ConstStateRef = BasicStateRef<const float>;

/// log_decay [batch, token, head], fp32; a stride is 0 where it is constant.
struct DecayRef {
  const float* data = nullptr;  // null: no decay
  std::int64_t batch_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

/// What all entry points share. segment_state reads neither q nor scale.
struct LinearAttentionProblem {
  DType dtype = DType::kFloat32;  // of q, k, v, out and their gradients
  int batch = 0;                  // sequences
  int heads_q = 0;
  int heads_kv = 0;                          // divides heads_q
  int dim = 0;                               // of q and k; feature_dim at most kMaxLinearDim
  int dim_v = 0;                             // of v and out, likewise
  int len = 0;                               // tokens of a sequence, or of all packed ones together
  const std::int32_t* cu_seqlens = nullptr;  // [batch + 1] offsets when packed, else null

  ConstTensorRef q;  // [batch, len, heads_q, dim]
  ConstTensorRef k;  // [batch, len, heads_kv, dim]
  ConstTensorRef v;  // [batch, len, heads_kv, dim_v]
  DecayRef log_decay;
  bool causal = true;  // false: without log_decay
  bool normalize = false;
  float scale = 1.0f;
  FeatureMap feature_map = FeatureMap::kNone;  // linear_attention_step has none
  ConstStateRef initial_state;                 // before the first token; zero if null
};

constexpr int kMaxLinearDim = 1024;

struct LinearAttentionForward : LinearAttentionProblem {
  TensorRef out;                 // [batch, len, heads_q, dim_v]
  float* denominator = nullptr;  // [batch, len, heads_q], contiguous; where normalize
  StateRef final_state;          // after the last token, or null
};

struct LinearAttentionBackward : LinearAttentionProblem {
  ConstTensorRef out;   // where normalize
  ConstTensorRef dout;  // strides may be 0
  const float* denominator = nullptr;
  ConstStateRef dfinal_state;   // zero if null
  TensorRef dq, dk, dv;         // as q, k, v; every element in range is written
  float* dlog_decay = nullptr;  // [batch, len, heads_q], contiguous, written; or null
  StateRef dinitial_state;      // or null
};

/// The state after the tokens: final_state = decayed initial_state + sum of decayed k v^T. The
/// building block of what runs in parallel over time.
struct LinearAttentionState : LinearAttentionProblem {
  StateRef final_state;
};

/// Decode: one token for each batch entry, whose state lies in a pool and is updated in place.
/// len is 1 and initial_state unused; the tokens of q, k, v, log_decay and out are its entries.
struct LinearAttentionStep : LinearAttentionProblem {
  StateRef states;  // of `num_states` sequences
  int num_states = 0;
  const std::int32_t* slots = nullptr;  // [batch] in the pool, each at most once; null: 0, 1, ...
  TensorRef out;                        // 0 where the slot is not in the pool: padding
};

namespace cpu {
TILEATTN_API void linear_attention_forward(const LinearAttentionForward& problem,
                                           const Executor& executor);
TILEATTN_API void linear_attention_backward(const LinearAttentionBackward& problem,
                                            const Executor& executor);
TILEATTN_API void segment_state(const LinearAttentionState& problem, const Executor& executor);
TILEATTN_API void linear_attention_step(const LinearAttentionStep& problem,
                                        const Executor& executor);
}  // namespace cpu

/// float16 and bfloat16; head dims must be multiples of 8 up to kMaxCudaLinearDim, those of q and k
/// with taylor2 up to kMaxCudaTaylor2Dim; linear_attention_step takes any. The rows of q, k, v, out
/// and gradients are aligned to 16 bytes.
namespace cuda {
constexpr int kMaxCudaLinearDim = 128;
constexpr int kMaxCudaTaylor2Dim = 16;

/// Bytes of device memory that the call needs at `workspace`, 256-byte aligned.
TILEATTN_API std::size_t linear_attention_forward_workspace(const LinearAttentionForward& problem);
TILEATTN_API std::size_t linear_attention_backward_workspace(
    const LinearAttentionBackward& problem);
TILEATTN_API std::size_t segment_state_workspace(const LinearAttentionState& problem);
/// Enqueue on `stream` (a cudaStream_t); throw std::runtime_error if a launch fails and
/// std::invalid_argument if no kernel for the problem was built. Bit-equal from run to run.
TILEATTN_API void linear_attention_forward(const LinearAttentionForward& problem, void* workspace,
                                           void* stream);
TILEATTN_API void linear_attention_backward(const LinearAttentionBackward& problem, void* workspace,
                                            void* stream);
TILEATTN_API void segment_state(const LinearAttentionState& problem, void* workspace, void* stream);
TILEATTN_API void linear_attention_step(const LinearAttentionStep& problem, void* stream);
}  // namespace cuda

}  // namespace tileattn
