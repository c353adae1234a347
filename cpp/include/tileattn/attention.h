// Tiled attention: out = softmax(modified scores over visible keys) V.
//
// The scores of query i and key j are, in this order:
//   s = scale * q_i . k_j                         (key head = query head / (heads_q / heads_kv))
//   s = softcap * tanh(s / softcap)               if softcap > 0
//   s = s - alibi_slope * |i + len_k - len_q - j| if given
//   s = s + bias[b, h, i, j]                      if given
//   s = -inf                                      where the pattern hides j from i
// and sinks[h] joins each row's sum as one more logit without a value.
// A row that sees no key: out = 0, lse = -inf (or the sink), gradients 0.
//
// With `neighborhood` the tokens of q, k and v stand on a grid, and its windows say what is
// visible; extra keys are seen by every query. Softcap, ALiBi, bias, sinks and packing are
// for sequences only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tileattn/executor.h"
#include "tileattn/pattern/neighborhood.h"
#include "tileattn/pattern/pattern.h"
#include "tileattn/tensor_ref.h"

namespace tileattn {

/// What forward and backward share.
struct AttentionProblem {
  DType dtype = DType::kFloat32;  // of q, k, v, out and their gradients
  int batch = 0;                  // sequences
  int heads_q = 0;
  int heads_kv = 0;  // divides heads_q
  int dim = 0;       // of q and k, a multiple of 8, at most 256
  int dim_v = 0;     // of v and out, likewise
  int len_q = 0;     // tokens of a sequence; when packed, of all sequences together
  int len_k = 0;
  const std::int32_t* cu_seqlens_q = nullptr;  // [batch + 1] offsets when packed, else null
  const std::int32_t* cu_seqlens_k = nullptr;  // [batch + 1]; both are given or none

  ConstTensorRef q;  // [batch, len_q, heads_q, dim]
  ConstTensorRef k;  // [batch, len_k, heads_kv, dim]
  ConstTensorRef v;  // [batch, len_k, heads_kv, dim_v]

  PatternSpec pattern;            // of sequences
  NeighborhoodSpec neighborhood;  // of tokens on a grid; len_q and len_k count all of them
  int extra_keys = 0;             // with a neighborhood
  ConstTensorRef extra_k;         // [batch, extra_keys, heads_kv, dim]
  ConstTensorRef extra_v;         // [batch, extra_keys, heads_kv, dim_v]

  float scale = 1.0f;
  float softcap = 0.0f;                 // 0: none
  const float* alibi_slopes = nullptr;  // [batch or 1, heads_q]
  std::int64_t alibi_batch_stride = 0;
  ConstBiasRef bias;             // not with packed sequences
  const float* sinks = nullptr;  // [heads_q]
};

struct AttentionForward : AttentionProblem {
  TensorRef out;         // [batch, len_q, heads_q, dim_v]
  float* lse = nullptr;  // [batch, len_q, heads_q], contiguous, natural log
  // For a backward, or null: what rounding takes from out and lse.
  std::int8_t* out_low = nullptr;  // [batch, len_q, heads_q, dim_v], contiguous; see low_part.h
  float* lse_low = nullptr;        // as lse, and 0 where that is -inf
};

struct AttentionBackward : AttentionProblem {
  ConstTensorRef out;   // this, lse and their low parts as the forward wrote them
  ConstTensorRef dout;  // strides may be 0
  const float* lse = nullptr;
  // Null: taken as 0. Without lse_low, weights are off by what float32 rounds off of lse, a
  // factor where that is large; without out_low, gradients are off by the rounding of out.
  const std::int8_t* out_low = nullptr;
  const float* lse_low = nullptr;
  const float* dlse = nullptr;  // [batch, len_q, heads_q], contiguous, or null
  TensorRef dq, dk, dv;         // as q, k, v; every element in range is written
  TensorRef dextra_k, dextra_v;
  // fp32, zeroed by the caller, added to. Its strides may be 0 where the bias is
  // broadcast; heads and batch entries then add up in no fixed order.
  BiasRef dbias;
  // [batch, len_q, heads_q], written: rowsum(dout * out) - dlse. The gradient
  // of sinks[h] is -sum(exp(sinks[h] - lse) * delta) over batch and queries.
  float* delta = nullptr;
  bool deterministic = false;  // bit-equal gradients from run to run
};

namespace cpu {
TILEATTN_API void attention_forward(const AttentionForward& problem, const Executor& executor);
TILEATTN_API void attention_backward(const AttentionBackward& problem, const Executor& executor);
/// "avx512", "avx2" or "portable": the variant that this machine runs.
TILEATTN_API const char* instruction_set();
}  // namespace cpu

namespace cuda {
/// The kernels of one op that were built for one dtype and head dims up to `dim`.
struct BuiltKernels {
  // "forward", "backward", the same after "neighborhood_", "linear" or "linear_taylor2"
  const char* op;
  DType dtype;
  int dim;
  int capability;    // of the devices they are for: 80 (and later ones), or 90 exactly
  int shared_limit;  // bytes of shared memory that a block of the device must be able to have
  int shared_bytes;  // and what the largest of the kernels takes
};
TILEATTN_API std::vector<BuiltKernels> built_kernels();

/// Bytes of device memory that the call needs at `workspace`, 256-byte aligned.
TILEATTN_API std::size_t attention_forward_workspace(const AttentionForward& problem);
TILEATTN_API std::size_t attention_backward_workspace(const AttentionBackward& problem);
/// Enqueue on `stream` (a cudaStream_t); throw std::runtime_error if a launch fails and
/// std::invalid_argument if no kernel for the problem was built.
TILEATTN_API void attention_forward(const AttentionForward& problem, void* workspace, void* stream);
TILEATTN_API void attention_backward(const AttentionBackward& problem, void* workspace,
                                     void* stream);
}  // namespace cuda

}  // namespace tileattn
