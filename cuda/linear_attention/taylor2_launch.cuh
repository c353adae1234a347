// A row of the kernel table of linear attention with taylor2.
#pragma once

#include "launch.cuh"
#include "taylor2.cuh"

namespace tileattn::cuda {

template <class Element, int kDim_>
struct Taylor2Launch : CommonLaunch<Element> {
  using Config = Taylor2Config<Element>;
  using Sum = MomentSum<Config>;
  static constexpr FeatureMap kFeatureMap = FeatureMap::kTaylor2;
  static constexpr int kDim = kDim_;
  static_assert(kDim == kTokenDim);
  static constexpr int kSharedBytes = sizeof(Taylor2Shared<Config, Reads::kTokens>);

  static void walk(const WalkParams& params, void* stream) {
    if (params.transposed) walk_of<Reads::kTokens>(params, stream);
    else walk_of<Reads::kValues>(params, stream);
  }
  static void sweep(const SweepParams& params, void* stream) {
    Taylor2Launch::walk_segments(taylor2_sweep_kernel<Config>, params.dk.shape,
                                 params.dk.all_slices, Config::kThreads, kSharedBytes, params,
                                 stream);
  }

 private:
  template <Reads kReads>
  static void walk_of(const WalkParams& params, void* stream) {
    Taylor2Launch::walk_segments(taylor2_walk_kernel<Config, kReads>, params.shape,
                                 params.all_slices, Config::kThreads,
                                 sizeof(Taylor2Shared<Config, kReads>), params, stream);
  }
};

}  // namespace tileattn::cuda
