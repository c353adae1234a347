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

  static void walk(const WalkParams& params, bool backwards, void* stream) {
    if (params.transposed) walk_of<Reads::kTokens>(params, backwards, stream);
    else walk_of<Reads::kValues>(params, backwards, stream);
  }

 private:
  template <Reads kReads>
  static void walk_of(const WalkParams& params, bool backwards, void* stream) {
    auto* kernel = backwards ? taylor2_walk_kernel<Config, Walk::kBackwards, kReads>
                             : taylor2_walk_kernel<Config, Walk::kForwards, kReads>;
    Taylor2Launch::walk_segments(kernel, params.slices, Config::kThreads,
                                 sizeof(Taylor2Shared<Config, kReads>), params, stream);
  }
};

}  // namespace tileattn::cuda
