// The weights of a chunk: what the decay and other numbers of its tokens make of its products.
//
// With G_i = sum of log2_decay over the chunk's tokens 0..i, of n, tokens i read from tokens j by
//
//   scan forwards:   j <= i, D_ij = 2^(G_i - G_j), r_i = 2^G_i,           c_j = 2^(G_n-1 - G_j)
//   scan backwards:  j >= i, D_ij = 2^(G_j - G_i), r_i = 2^(G_n-1 - G_i), c_j = 2^G_j
//
// Every exponent is <= 0. Queries or keys may have factors, and one channel more, in fp32.
#pragma once

#include <cute/arch/copy_sm80.hpp>

#include "common/math.cuh"
#include "range.cuh"
#include "segments.cuh"

namespace tileattn::cuda {

/// Of a chunk's tokens, one after the other in the same place.
struct SharedNumbers {
  float sum[kChunk];     // log_decay as it arrives, then G
  float factor[kChunk];  // divisor, then factor
  float extra[kChunk];

  /// Starts copying; entries of tokens behind the chunk's end are left unset.
  CUTE_DEVICE void fetch(const LinearShape& shape, const TokenNumbers& numbers,
                         const SegmentPart& place, Range tokens) {
    int row = threadIdx.x, token = tokens.begin + row;
    if (token >= tokens.end || row >= kChunk) return;
    const DecayRef& decay = shape.decay;
    auto copy = [](const float* from, float& to) {
      SM80_CP_ASYNC_CACHEALWAYS<float>::copy(*from, to);
    };
    if (decay.data)
      copy(decay.data + place.entry * decay.batch_stride + token * decay.token_stride +
               place.head * decay.head_stride,
           sum[row]);
    if (numbers.divisors) copy(numbers.divisors + place.row(shape, token), factor[row]);
    if (numbers.extra) copy(numbers.extra + place.row(shape, token), extra[row]);
  }
};

/// What follows from them.
struct SharedWeights {
  float read[kChunk];   // r_i
  float write[kChunk];  // c_j times the key's factor, times `range`
  float total;          // 2^G_n-1
  float range;          // 1, or a power of two
  float extra_range;    // likewise, of the extra values
};

/// Whether keys are weighted at all before they are added to the state.
CUTE_DEVICE bool weighs_keys(const LinearShape& shape, const TokenNumbers& numbers) {
  return shape.decay.data || (!numbers.of_queries && (numbers.divisors || numbers.scale != 1.0f));
}

/// 1 / x, and 0 for 0: a row without a denominator is 0 and has no gradient.
CUTE_DEVICE float reciprocal(float x) { return x == 0.0f ? 0.0f : 1.0f / x; }

/// log_decay in base 2. Sums over a chunk stay small enough for exact differences: 2^-200 is 0.
CUTE_DEVICE float log2_step(float log_decay) {
  constexpr float kWeakest = -200.0f;
  return fmaxf(log_decay * kLog2E, kWeakest);
}

/// The sum over lanes up to this one.
CUTE_DEVICE float scan_lanes(float value) {
  int lane = threadIdx.x % 32;
  CUTE_UNROLL
  for (int distance = 1; distance < 32; distance *= 2) {
    float before = __shfl_up_sync(0xffffffff, value, distance);
    if (lane >= distance) value += before;
  }
  return value;
}

/// Of tokens that are added as they are.
CUTE_DEVICE float size_one(int /*token*/) { return 1.0f; }

/// One warp computes the weights of `tokens` tokens, two a lane. size(token): how much larger than
/// its numbers is what a token adds to the state.
template <Time kTime, class Element, class Size>
CUTE_DEVICE void weigh_tokens(SharedNumbers& own, SharedWeights& weights, const LinearShape& shape,
                              const TokenNumbers& numbers, int tokens, const Size& size) {
  int lane = threadIdx.x % 32;
  float sum[2];
  CUTE_UNROLL
  for (int n = 0; n < 2; ++n) {
    int token = lane + 32 * n;
    sum[n] = scan_lanes(shape.decay.data && token < tokens ? log2_step(own.sum[token]) : 0.0f);
  }
  sum[1] += __shfl_sync(0xffffffff, sum[0], 31);
  float total = __shfl_sync(0xffffffff, sum[1], 31);
  float write[2], peak = 0.0f, extra_peak = 0.0f;
  CUTE_UNROLL
  for (int n = 0; n < 2; ++n) {
    int token = lane + 32 * n;
    bool exists = token < tokens;
    float factor = numbers.scale;
    if (numbers.divisors && exists) factor *= reciprocal(own.factor[token]);
    float before = exp2_approx(sum[n]), after = exp2_approx(total - sum[n]);
    own.sum[token] = sum[n];
    own.factor[token] = factor;
    if (!numbers.extra || !exists) own.extra[token] = exists ? 1.0f : 0.0f;
    weights.read[token] = kTime == Time::kForwards ? before : after;
    write[n] = (kTime == Time::kForwards ? after : before) * (numbers.of_queries ? 1.0f : factor);
    if (kNarrow<Element> && exists) {
      peak = fmaxf(peak, fabsf(write[n]) * size(token));
      extra_peak = fmaxf(extra_peak, fabsf(own.extra[token]));
    }
  }
  float range = 1.0f, extra_range = 1.0f;
  if constexpr (kNarrow<Element>) {
    range = weight_factor(peak_of_warp(peak));
    extra_range = range_factor(peak_of_warp(extra_peak));
  }
  CUTE_UNROLL
  for (int n = 0; n < 2; ++n) weights.write[lane + 32 * n] = write[n] * range;
  if (lane != 0) return;
  weights.total = exp2_approx(total);
  weights.range = range;
  weights.extra_range = extra_range;
}

/// What a chunk does to the state: it decays, and add() adds the products of weighted keys, those
/// that belong to z times extra_range.
template <class Element, class State, class Add>
CUTE_DEVICE void update_state(State& state, const SharedWeights& weights, const LinearShape& shape,
                              float extra_range, const Add& add) {
  if constexpr (kNarrow<Element>) {
    const float factor = weights.total * weights.range;
    if (factor != 1.0f || extra_range != 1.0f) state.scale(factor, factor * extra_range);
    add();
    if (weights.range == 1.0f && extra_range == 1.0f) return;
    const float back = inverse_power(weights.range);
    state.scale(back, back * inverse_power(extra_range));
  } else {
    if (shape.decay.data) state.scale(weights.total, weights.total);
    add();
  }
}

}  // namespace tileattn::cuda
