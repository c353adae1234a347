// Linear attention with taylor2.
#pragma once

#include "linear.cuh"
#include "taylor2_scan.cuh"

namespace tileattn::cuda {

template <class Element, int kDim>
struct Taylor2Launch : CommonLaunch<Element> {
  using Config = Taylor2Config<Element>;
  using Sum = Taylor2Sum<Config>;
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

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<LinearKernels> linear_taylor2_sm80() {
  return {dtype_of<Element>(), kDim, Architecture::kSm80, kBudget,
          linear_kernels<Taylor2Launch<Element, kDim>, kBudget>()};
}

}  // namespace tileattn::cuda
