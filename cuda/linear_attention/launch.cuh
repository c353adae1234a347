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

/// What rows with a feature map and without have in common.
template <class Element>
struct CommonLaunch {
  /// Of a kernel whose blocks own slices of the segments' states.
  template <class Params>
  static void walk_segments(void (*kernel)(Params), const LinearShape& shape, int slices,
                            int threads, std::size_t shared, const Params& params, void* stream) {
    launch(kernel, std::int64_t{shape.segments} * slices * shape.heads * shape.batch, threads,
           shared, static_cast<cudaStream_t>(stream), params);
  }

  template <class Sum>
  static void accumulate(const AccumulateParams& params, bool backwards, void* stream) {
    auto* kernel = backwards ? accumulate_kernel<Sum, Walk::kBackwards>
                             : accumulate_kernel<Sum, Walk::kForwards>;
    walk_segments(kernel, params.shape, tileattn::ceil_div(params.values.dim, Sum::kColumns),
                  Sum::Config::kThreads, sizeof(AccumulateShared<Sum>), params, stream);
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

  static void sum_parts(const SumPartsParams& params, void* stream) {
    std::int64_t pairs = params.shape.rows() / params.group * (params.dims / 2);
    launch(sum_parts_kernel<Element>, (pairs + kRowThreads - 1) / kRowThreads, kRowThreads, 0,
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
};

/// Without a feature map, for queries and keys of up to kDim channels.
template <class Element, int kDim_>
struct LinearLaunch : CommonLaunch<Element> {
  using Config = LinearConfig<Element, kDim_>;
  using Sum = StateSum<Config>;
  static constexpr FeatureMap kFeatureMap = FeatureMap::kNone;
  static constexpr int kDim = kDim_;
  static constexpr int kSharedBytes = sizeof(WalkShared<Config>);

  static void walk(const WalkParams& params, void* stream) {
    auto* kernel =
        params.transposed ? walk_kernel<Config, Result::kDq> : walk_kernel<Config, Result::kOut>;
    LinearLaunch::walk_segments(kernel, params.shape, params.all_slices, Config::kThreads,
                                kSharedBytes, params, stream);
  }
  static void sweep(const SweepParams& params, void* stream) {
    LinearLaunch::walk_segments(sweep_kernel<Config>, params.dk.shape, params.dk.all_slices,
                                Config::kThreads, kSharedBytes, params, stream);
  }
};

template <class Launch, SharedBudget kBudget>
LinearKernels linear_kernels(DType dtype) {
  static_assert(Launch::kSharedBytes <= bytes_of(kBudget));
  return {dtype,
          Launch::kFeatureMap,
          Launch::kDim,
          kBudget,
          Launch::kSharedBytes,
          Launch::walk,
          Launch::sweep,
          Launch::template accumulate<typename Launch::Sum>,
          Launch::pass_states,
          Launch::extra,
          Launch::sum_parts,
          Launch::decay_gradient,
          Launch::step};
}

}  // namespace tileattn::cuda
