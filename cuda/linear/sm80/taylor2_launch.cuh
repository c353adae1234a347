// A row of the kernel table of linear attention with taylor2.
#pragma once

#include "launch.cuh"
#include "taylor2_scan.cuh"

namespace tileattn::cuda {

template <class Element, int kDim_>
struct Taylor2Launch : CommonLaunch<Element> {
  using Config = Taylor2Config<Element>;
  using Sum = Taylor2Sum<Config>;
  static constexpr FeatureMap kFeatureMap = FeatureMap::kTaylor2;
  static constexpr int kDim = kDim_;
  static_assert(kDim == kTokenDim);
  static constexpr int kSharedBytes = sizeof(Taylor2Shared<Config, Reads::kTokens>);

  static void scan(const ScanParams& params, void* stream) {
    if (params.transposed) scan_of<Reads::kTokens>(params, stream);
    else scan_of<Reads::kValues>(params, stream);
  }
  static void sweep(const SweepParams& params, void* stream) {
    Taylor2Launch::launch_segments(taylor2_sweep_kernel<Config>, params.dk.shape,
                                   params.dk.all_slices, Config::kThreads, kSharedBytes, params,
                                   stream);
  }

 private:
  template <Reads kReads>
  static void scan_of(const ScanParams& params, void* stream) {
    Taylor2Launch::launch_segments(taylor2_scan_kernel<Config, kReads>, params.shape,
                                   params.all_slices, Config::kThreads,
                                   sizeof(Taylor2Shared<Config, kReads>), params, stream);
  }
};

}  // namespace tileattn::cuda
