// Linear attention without a feature map, and what it shares with taylor2.
#pragma once

#include <algorithm>

#include "chunk_scan.cuh"
#include "common/launch.cuh"
#include "decay_gradient.cuh"
#include "linear/decode_step.cuh"
#include "linear/kernel_table.h"
#include "linear/row_kernels.cuh"
#include "segment_state.cuh"

namespace tileattn::cuda {

/// What rows with a feature map and without have in common.
template <class Element>
struct CommonLaunch {
  /// Of a kernel whose blocks own slices of the segments' states.
  template <class Params>
  static void launch_segments(void (*kernel)(Params), const LinearShape& shape, int slices,
                              int threads, std::size_t shared, const Params& params, void* stream) {
    launch(kernel, std::int64_t{shape.segments} * slices * shape.heads * shape.batch, threads,
           shared, static_cast<cudaStream_t>(stream), params);
  }

  template <class Sum>
  static void segment_state(const SegmentStateParams& params, bool backwards, void* stream) {
    auto* kernel = backwards ? segment_state_kernel<Sum, Time::kBackwards>
                             : segment_state_kernel<Sum, Time::kForwards>;
    launch_segments(kernel, params.shape, tileattn::ceil_div(params.values.dim, Sum::kColumns),
                    Sum::Config::kThreads, sizeof(SegmentStateShared<Sum>), params, stream);
  }

  static void pass_states(const PassParams& params, void* stream) {
    const LinearShape& shape = params.shape;
    std::int64_t blocks = tileattn::ceil_div(state_elements(shape, params.slots.z), kPassThreads);
    launch(pass_states_kernel<kPassThreads>, blocks * shape.batch * shape.heads, kPassThreads, 0,
           static_cast<cudaStream_t>(stream), params);
  }

  static void denominator_gradient(const DenominatorGradientParams& params, void* stream) {
    launch(denominator_gradient_kernel<Element>, (params.shape.rows() + kRowWarps - 1) / kRowWarps,
           kRowThreads, 0, static_cast<cudaStream_t>(stream), params);
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

  static void decode_step(const LinearAttentionStep& problem, void* stream) {
    launch(decode_step_kernel<Element>, std::int64_t{problem.batch} * problem.heads_q, kStepThreads,
           0, static_cast<cudaStream_t>(stream), problem);
  }
};

/// Without a feature map, for queries and keys of up to kDim channels.
template <class Element, int kDim>
struct LinearLaunch : CommonLaunch<Element> {
  using Config = LinearConfig<Element, kDim>;
  using Sum = StateSum<Config>;
  static constexpr int kSharedBytes = sizeof(ScanShared<Config>);

  static void scan(const ScanParams& params, void* stream) {
    auto* kernel = params.transposed ? chunk_scan_kernel<Config, Result::kDq>
                                     : chunk_scan_kernel<Config, Result::kOut>;
    LinearLaunch::launch_segments(kernel, params.shape, params.all_slices, Config::kThreads,
                                  kSharedBytes, params, stream);
  }
  static void sweep(const SweepParams& params, void* stream) {
    LinearLaunch::launch_segments(sweep_kernel<Config>, params.dk.shape, params.dk.all_slices,
                                  Config::kThreads, kSharedBytes, params, stream);
  }
};

/// What a row of the kernel table calls.
template <class Launch, SharedBudget kBudget>
LinearKernels linear_kernels() {
  static_assert(Launch::kSharedBytes <= bytes_of(kBudget));
  return {Launch::kSharedBytes, Launch::scan,
          Launch::sweep,        Launch::template segment_state<typename Launch::Sum>,
          Launch::pass_states,  Launch::denominator_gradient,
          Launch::sum_parts,    Launch::decay_gradient,
          Launch::decode_step};
}

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<LinearKernels> linear_sm80() {
  return {dtype_of<Element>(), kDim, Architecture::kSm80, kBudget,
          linear_kernels<LinearLaunch<Element, kDim>, kBudget>()};
}

}  // namespace tileattn::cuda
