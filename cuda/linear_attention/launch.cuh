// A row of the kernel table of linear attention.
#pragma once

#include <algorithm>

#include "accumulate.cuh"
#include "decay_gradient.cuh"
#include "kernel_table.h"
#include "rows.cuh"
#include "softmax_attention/launch.cuh"
#include "step.cuh"
#include "walk.cuh"

namespace tileattn::cuda {

template <class Element, int kDim>
struct LinearLaunch {
  using Config = LinearConfig<Element, kDim>;

  static void walk(const WalkParams& params, bool backwards, void* stream) {
    const LinearShape& shape = params.shape;
    auto* kernel =
        backwards ? walk_kernel<Config, Walk::kBackwards> : walk_kernel<Config, Walk::kForwards>;
    launch(kernel, blocks_of(shape, params.values.dim), Config::kThreads,
           sizeof(WalkShared<Config>), static_cast<cudaStream_t>(stream), params);
  }

  static void accumulate(const AccumulateParams& params, bool backwards, void* stream) {
    auto* kernel = backwards ? accumulate_kernel<Config, Walk::kBackwards>
                             : accumulate_kernel<Config, Walk::kForwards>;
    launch(kernel, blocks_of(params.shape, params.values.dim), Config::kThreads,
           sizeof(AccumulateShared<Config>), static_cast<cudaStream_t>(stream), params);
  }

  static void pass_states(const PassParams& params, void* stream) {
    const LinearShape& shape = params.shape;
    std::int64_t blocks = tileattn::ceil_div(state_elements(shape, params.slots.z), kPassThreads);
    launch(pass_states_kernel<kPassThreads>, blocks * shape.batch * shape.heads, kPassThreads, 0,
           static_cast<cudaStream_t>(stream), params);
  }

  static void extra(const ExtraParams& params, void* stream) {
    launch(extra_kernel<Element>, (params.shape.rows() + kRowWarps - 1) / kRowWarps, kRowThreads, 0,
           static_cast<cudaStream_t>(stream), params);
  }

  static void sum_heads(const SumHeadsParams& params, void* stream) {
    std::int64_t pairs = params.shape.rows() / params.group * (params.dims / 2);
    launch(sum_heads_kernel<Element>, (pairs + kRowThreads - 1) / kRowThreads, kRowThreads, 0,
           static_cast<cudaStream_t>(stream), params);
  }

  static void decay_gradient(const DecayGradientParams& params, void* stream) {
    using Block = LinearConfig<Element, kBlock>;
    const LinearShape& shape = params.shape;
    std::int64_t chunks = TileSlots{shape.cu_seqlens, shape.batch, shape.len, kChunk}.count();
    launch(pairs_kernel<Block>, chunks * shape.heads, Block::kThreads, 0,
           static_cast<cudaStream_t>(stream), params);
    launch(chain_kernel<32>, std::int64_t{shape.batch} * shape.heads * shape.segments, 32, 0,
           static_cast<cudaStream_t>(stream), params);
  }

  static void step(const LinearAttentionStep& problem, void* stream) {
    launch(step_kernel<Element>, std::int64_t{problem.batch} * problem.heads_q, kStepThreads, 0,
           static_cast<cudaStream_t>(stream), problem);
  }

 private:
  static std::int64_t blocks_of(const LinearShape& shape, int values) {
    return std::int64_t{shape.segments} * tileattn::ceil_div(values, kValues) * shape.heads *
           shape.batch;
  }
};

template <class Element, int kDim, SharedBudget kBudget>
LinearKernels linear_kernels(DType dtype) {
  using Launch = LinearLaunch<Element, kDim>;
  constexpr int kSharedBytes = int(sizeof(WalkShared<typename Launch::Config>));
  static_assert(kSharedBytes <= bytes_of(kBudget));
  return {dtype,
          kDim,
          kBudget,
          kSharedBytes,
          Launch::walk,
          Launch::accumulate,
          Launch::pass_states,
          Launch::extra,
          Launch::sum_heads,
          Launch::decay_gradient,
          Launch::step};
}

}  // namespace tileattn::cuda
