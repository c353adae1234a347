// The states that segments add up to, each from zero: what makes them run in parallel.
//
// Grid: segments x value slices x heads x sequences, as one index, the segment running fastest.
// Block: some columns of the state of one segment, over its chunks; the state stays in registers.
// Shared memory: kStages of keys and values, streamed by cp.async.
// pass_states_kernel then makes them the states before each segment. Grid: (elements of a state /
// kPassThreads) x heads x sequences; a thread owns an element.
#pragma once

#include "chunk.cuh"

namespace tileattn::cuda {

/// What a block adds up: the state. With taylor2 it is Taylor2Sum.
template <class Config_>
struct StateSum {
  using Config = Config_;
  using Element = typename Config::Element;
  using KeySmem = typename Config::KeySmem::Plain;
  using ValueSmem = typename Config::ValueSmem::Plain;
  static constexpr int kKeyElements = kChunk * Config::kDim;
  static constexpr int kValueElements = kChunk * kValues;
  static constexpr int kColumns = kValues;
  State<Config> state;

  CUTE_DEVICE StateSum() {
    clear(state.s);
    clear(state.z);
  }

  CUTE_DEVICE static float feature_size(const Element* /*keys*/, int /*token*/) { return 1.0f; }

  CUTE_DEVICE void add(const Element* keys, const Element* values, const float* weights,
                       bool weighted, int, Term term, const float* extra_values,
                       float extra_range) {
    multiply_values<Config, Time::kForwards, false>(keys, values, weights, weighted, term,
                                                    extra_values, extra_range, 0, state.z, state);
  }

  CUTE_DEVICE void store(const StatePart& to, const Operand&, bool with_z) {
    state.store(to, with_z);
  }
};

template <class Sum>
struct alignas(128) SegmentStateShared {
  using Element = typename Sum::Element;
  struct Stage {
    Element keys[Sum::kKeyElements];
    Element values[Sum::kValueElements];
    SharedNumbers numbers;
  } stages[Sum::Config::kStages];
  SharedWeights weights;
};

template <class Sum, Time kTime>
__global__ void __launch_bounds__(Sum::Config::kThreads, Sum::Config::kBlocks)
    segment_state_kernel(const __grid_constant__ SegmentStateParams params) {
  using Config = typename Sum::Config;
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<SegmentStateShared<Sum>*>(shared_memory);
  const LinearShape& shape = params.shape;
  const SegmentPart place(shape, tileattn::ceil_div(shape.dim_v, Sum::kColumns), blockIdx.x);
  const int column = place.slice * Sum::kColumns;
  const bool with_z = params.extra == Extra::kValues;
  const bool weighted = weighs_keys(shape, params.numbers);

  auto fetch = [&](int n) {
    if (n < place.chunks()) {
      auto& stage = shared.stages[n % Config::kStages];
      Range tokens = chunk_tokens<kTime>(place, n);
      fetch_tile<Config>(stage.keys, typename Sum::KeySmem{}, params.keys, place, tokens, 0);
      fetch_tile<Config>(stage.values, typename Sum::ValueSmem{}, params.values, place, tokens,
                         column);
      stage.numbers.fetch(shape, params.numbers, place, tokens);
    }
    cp_async_fence();
  };

  Sum sum;
  float decay = 1.0f;
  fetch(0);
  CUTE_NO_UNROLL
  for (int n = 0; n < place.chunks(); ++n) {
    auto& stage = shared.stages[n % Config::kStages];
    const int tokens = chunk_tokens<kTime>(place, n).size();
    cp_async_wait<0>();
    __syncthreads();  // this chunk is here, the other stage is used up
    fetch(n + 1);
    if (threadIdx.x < 32)
      weigh_tokens<kTime, typename Sum::Element>(
          stage.numbers, shared.weights, shape, params.numbers, tokens,
          [&](int token) { return Sum::feature_size(stage.keys, token); });
    __syncthreads();  // the weights are complete
    decay *= shared.weights.total;
    const float extra_range = with_z ? shared.weights.extra_range : 1.0f;
    auto add = [&](Term term) {
      sum.add(stage.keys, stage.values, shared.weights.write, weighted, tokens, term,
              with_z ? stage.numbers.extra : nullptr, extra_range);
    };
    update_state<typename Sum::Element>(sum.state, shared.weights, shape, extra_range, [&] {
      add(Term::kFirst);
      if (params.exact) add(Term::kSecond);
    });
  }

  std::int64_t pair = place.pair(shape);
  sum.store(state_part(shape, params.own.s, params.own.z, pair * params.own.slots + place.segment,
                       false, column),
            params.keys, with_z && place.slice == 0);
  if (place.slice == 0 && threadIdx.x == 0)
    params.decays[pair * shape.segments + place.segment] = decay;
}

constexpr int kPassThreads = 256;

/// Elements of S and z of one state.
TILEATTN_HOST_DEVICE int state_elements(const LinearShape& shape, bool with_z) {
  return shape.dim * (shape.dim_v + (with_z ? 1 : 0));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    pass_states_kernel(const __grid_constant__ PassParams params) {
  const LinearShape& shape = params.shape;
  const int elements = state_elements(shape, params.slots.z), in_s = shape.dim * shape.dim_v;
  const int blocks = tileattn::ceil_div(elements, kThreads);
  const std::int64_t pair = blockIdx.x / blocks;
  int element = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (element >= elements) return;

  const bool in_z = element >= in_s;
  const int size = in_z ? shape.dim : in_s;
  if (in_z) element -= in_s;
  float* slots =
      (in_z ? params.slots.z : params.slots.s) + pair * params.slots.slots * size + element;
  const float* first = in_z ? params.first.z : params.first.s;
  float* last = in_z ? params.last.z : params.last.s;
  float state = first ? first[pair * size + element] : 0.0f;
  for (int n = 0; n < shape.segments; ++n) {
    int segment = params.backwards ? shape.segments - 1 - n : n;
    float& slot = slots[std::int64_t{segment} * size];
    float own = slot, decay = params.decays[pair * shape.segments + segment];
    slot = state;
    state = decay * state + own;
  }
  slots[std::int64_t{shape.segments} * size] = state;
  if (last) last[pair * size + element] = state;
}

}  // namespace tileattn::cuda
