// Scores: from the product q . k to the score that the normaliser sees, in the
// order of tileattn/attention.h. Visibility is the pattern's matter.
#pragma once

#include <cmath>

#include "common/math.cuh"
#include "tileattn/attention.h"

namespace tileattn::cuda {

/// Whether the score is more than scale * q.k.
__host__ __device__ __forceinline__ bool has_modifiers(const AttentionProblem& problem) {
  return problem.softcap > 0.0f || problem.alibi_slopes || problem.bias.data;
}

/// Whether scores are products times a positive scale, which hidden ones pass through as -inf.
__host__ __device__ __forceinline__ bool plain(const AttentionProblem& problem) {
  return !has_modifiers(problem) && problem.scale > 0.0f;
}

/// The modifiers of one sequence, head by head. The exact quotient in a softcap is a
/// function call; which one needs fewer registers depends on the kernel.
template <class Element, bool kExactQuotient = true>
class Scores {
 public:
  __device__ __forceinline__ Scores(const AttentionProblem& problem, int sequence, int len_q,
                                    int len_k)
      : problem_(problem),
        modified_(!plain(problem)),
        bias_(problem.bias.data),
        sequence_(sequence),
        len_q_(len_q),
        len_k_(len_k) {}

  __device__ __forceinline__ void set_head(int head) {
    head_ = head;
    if (problem_.alibi_slopes)
      slope_ = problem_.alibi_slopes[sequence_ * problem_.alibi_batch_stride + head];
  }

  /// Whether the problem is not plain().
  __device__ __forceinline__ bool modified() const { return modified_; }

  /// The modified score of a product q.k; `derivative` is multiplied by that by scale * q.k.
  __device__ __forceinline__ float operator()(float product, int query, int key,
                                              float& derivative) const {
    float score = product * problem_.scale;
    if (problem_.softcap > 0.0f) {
      // tanh(x) = 1 - 2 / (exp(2x) + 1)
      float quotient =
          kExactQuotient ? score / problem_.softcap : __fdividef(score, problem_.softcap);
      float power = exp2_approx(quotient * (2.0f * kLog2E));
      float capped = 1.0f - __fdividef(2.0f, power + 1.0f);
      score = problem_.softcap * capped;
      derivative *= 1.0f - capped * capped;
    }
    if (problem_.alibi_slopes) score -= slope_ * abs(query + len_k_ - len_q_ - key);
    if (bias_ && query < len_q_ && key < len_k_) score += bias_at(query, key);
    return score;
  }

 private:
  __device__ __forceinline__ float bias_at(int query, int key) const {
    const ConstBiasRef& bias = problem_.bias;
    std::int64_t at =
        sequence_ * bias.batch_stride + head_ * bias.head_stride + query * bias.query_stride + key;
    return bias.dtype == DType::kFloat32 ? static_cast<const float*>(bias_)[at]
                                         : float(static_cast<const Element*>(bias_)[at]);
  }

  const AttentionProblem& problem_;
  bool modified_;
  const void* bias_;  // one value: read anew for each element, it would take registers for each
  int sequence_;
  int len_q_;
  int len_k_;
  int head_ = 0;
  float slope_ = 0.0f;
};

}  // namespace tileattn::cuda
