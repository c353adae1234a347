// The forward on a grid: the kernels of forward.cuh with tiles and scores of grids.
#pragma once

#include "forward.cuh"
#include "softmax/grid_scores.cuh"

namespace tileattn::cuda {

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<ForwardKernels> neighborhood_forward_sm80() {
  return {dtype_of<Element>(), kDim, Architecture::kSm80, kBudget,
          kernels_of_grids<ForwardLaunch<Element, kDim, kBudget>, AttentionForward>()};
}

}  // namespace tileattn::cuda
