// Decode: one token reads and updates its state, which passes through the registers once.
//
// Grid: batch entries x query heads. Block: one state; a thread owns value channels. Shared memory:
// q and k of the token, and the sum of q . z. Bound by the memory traffic of the state.
#pragma once

#include "common/math.cuh"
#include "common/rows.cuh"
#include "tileattn/linear_attention.h"

namespace tileattn::cuda {

constexpr int kStepThreads = 128;

template <class Element>
__global__ void __launch_bounds__(kStepThreads)
    decode_step_kernel(const __grid_constant__ LinearAttentionStep problem) {
  __shared__ float q[kMaxLinearDim], k[kMaxLinearDim], sums[kStepThreads / 32];
  const int token = blockIdx.x / problem.heads_q, head = blockIdx.x % problem.heads_q;
  const int head_kv = head / (problem.heads_q / problem.heads_kv);
  const int slot = problem.slots ? problem.slots[token] : token;
  Element* out = row_pointer<Element>(problem.out, 0, token, head);
  if (slot < 0 || slot >= problem.num_states) {
    for (int e = threadIdx.x; e < problem.dim_v; e += kStepThreads) out[e] = Element(0.0f);
    return;
  }
  const DecayRef& ref = problem.log_decay;
  float decay =
      ref.data ? exp2_approx(ref.data[token * ref.token_stride + head * ref.head_stride] * kLog2E)
               : 1.0f;
  const Element* query = row_pointer<const Element>(problem.q, 0, token, head);
  const Element* key = row_pointer<const Element>(problem.k, 0, token, head_kv);
  const Element* value = row_pointer<const Element>(problem.v, 0, token, head_kv);
  const std::int64_t first = (std::int64_t{slot} * problem.heads_q + head) * problem.dim;

  float denominator = 0.0f;
  for (int d = threadIdx.x; d < problem.dim; d += kStepThreads) {
    q[d] = problem.scale * float(query[d]);
    k[d] = float(key[d]);
    if (!problem.normalize) continue;
    float& z = problem.states.z[first + d];
    z = decay * z + k[d];
    denominator += q[d] * z;
  }
  CUTE_UNROLL
  for (int distance = 1; distance < 32; distance *= 2)
    denominator += __shfl_xor_sync(0xffffffff, denominator, distance);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = denominator;
  __syncthreads();  // q, k and the sums are complete
  denominator = sums[0] + sums[1] + sums[2] + sums[3];
  float factor = !problem.normalize ? 1.0f : denominator == 0.0f ? 0.0f : 1.0f / denominator;

  for (int e = threadIdx.x; e < problem.dim_v; e += kStepThreads) {
    float* s = problem.states.s + first * problem.dim_v + e;
    float added = float(value[e]), sum = 0.0f;
    _Pragma("unroll 8") for (int d = 0; d < problem.dim; ++d, s += problem.dim_v) {
      float updated = decay * *s + k[d] * added;
      *s = updated;
      sum += q[d] * updated;
    }
    out[e] = Element(sum * factor);
  }
}

}  // namespace tileattn::cuda
