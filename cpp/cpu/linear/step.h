// Decode: one token reads and updates its state, which passes through the registers once.
#pragma once

#include "cpu/common/pack.h"
#include "cpu/linear/plan.h"

namespace tileattn::cpu::TILEATTN_ISA {

/// s <- decay * s + key * v and out += query * s, over `count` channels.
inline void update_row(float* __restrict s, float* __restrict out, const float* __restrict v,
                       int count, float decay, float key, float query) {
  for (int e = 0; e < count; ++e) {
    float updated = decay * s[e] + key * v[e];
    s[e] = updated;
    out[e] += query * updated;
  }
}

inline void step(const LinearAttentionStep& p, int token, int head) {
  const int slot = p.slots ? p.slots[token] : token;
  float out[kMaxLinearDim] = {};
  auto out_row = rows_of(p.out, p.dtype, 0, head, token);
  if (slot < 0 || slot >= p.num_states) return store_row(out, out_row.data, p.dtype, p.dim_v, 1.0f);

  const int kv_head = head / (p.heads_q / p.heads_kv);
  float q[kMaxLinearDim], k[kMaxLinearDim], v[kMaxLinearDim];
  load_row(rows_of(p.q, p.dtype, 0, head, token).data, p.dtype, q, p.dim, p.scale);
  load_row(rows_of(p.k, p.dtype, 0, kv_head, token).data, p.dtype, k, p.dim, 1.0f);
  load_row(rows_of(p.v, p.dtype, 0, kv_head, token).data, p.dtype, v, p.dim_v, 1.0f);
  float decay = 1.0f;
  if (p.log_decay.data)
    decay = exp(broadcast(
        p.log_decay.data[token * p.log_decay.token_stride + head * p.log_decay.head_stride]))[0];

  const std::int64_t first = (std::int64_t{slot} * p.heads_q + head) * p.dim;
  float* s = p.states.s + first * p.dim_v;
  float denominator = 0;
  for (int d = 0; d < p.dim; ++d) {
    update_row(s + std::int64_t{d} * p.dim_v, out, v, p.dim_v, decay, k[d], q[d]);
    if (!p.normalize) continue;
    float& z = p.states.z[first + d];
    z = decay * z + k[d];
    denominator += q[d] * z;
  }
  float factor = 1.0f;
  if (p.normalize) factor = denominator == 0 ? 0.0f : 1.0f / denominator;
  store_row(out, out_row.data, p.dtype, p.dim_v, factor);
}

}  // namespace tileattn::cpu::TILEATTN_ISA
