// The sum of a row's weights: a maximum and a sum relative to it in the forward, and an lse that
// loses nothing of the two on the way to the backward.
//
// The loops work with base-2 logits, products times a positive factor, which a single instruction
// makes ready for exp2. Modified scores stay natural logits instead: times log2(e) a mask of the
// lowest finite number would be -inf.
#pragma once

#include "scores.cuh"

namespace tileattn::cuda {

// What rounding takes from kLog2E and kLn2.
constexpr float kLog2ELow = 1.9259630e-8f;
constexpr float kLn2Low = -1.9046543e-9f;

/// A number as the sum of its rounded value and the rest.
struct TwoFloats {
  float high, low;
};

/// Whether the loops of a problem work with natural logits.
TILEATTN_HOST_DEVICE bool natural_logits(const AttentionProblem& problem) {
  return problem.neighborhood.rank == 0 && !plain(problem);
}

/// exp of what is a natural logit, or exp2.
__device__ __forceinline__ float exp_of_logit(float logit, bool natural) {
  return exp2_approx(natural ? logit * kLog2E : logit);
}

/// Natural log of a row's sum, whose maximum is a logit; -inf for a row that saw no key.
__device__ __forceinline__ TwoFloats lse_of(float max, float sum, bool natural) {
  if (sum == 0.0f) return {-INFINITY, 0.0f};
  float rest = logf(sum);
  if (natural) {
    float lse = max + rest;
    return {lse, (max - lse) + rest};
  }
  rest = fmaf(max, kLn2Low, rest);
  float lse = fmaf(max, kLn2, rest);
  return {lse, fmaf(max, kLn2, -lse) + rest};
}

/// An lse as the backward subtracts it: a logit less high, times log2(e) if natural, and less low
/// is the base-2 logarithm of a weight.
__device__ __forceinline__ TwoFloats logit_of(TwoFloats lse, bool natural) {
  float low = lse.low * kLog2E;
  if (natural) return {lse.high, low};
  float high = lse.high * kLog2E;
  return {high, fmaf(lse.high, kLog2E, -high) + fmaf(lse.high, kLog2ELow, low)};
}

}  // namespace tileattn::cuda
