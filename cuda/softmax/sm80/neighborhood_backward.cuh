// The backward on a grid: the kernels of backward.cuh with tiles and scores of grids.
#pragma once

#include "backward.cuh"
#include "softmax/grid_scores.cuh"

namespace tileattn::cuda {

/// A row of the kernel table.
template <class Element, int kDim, SharedBudget kBudget>
KernelRow<BackwardKernels> neighborhood_backward_sm80() {
  return {dtype_of<Element>(), kDim, Architecture::kSm80, kBudget,
          kernels_of_grids<BackwardLaunch<Element, kDim, kBudget>, AttentionBackward>()};
}

}  // namespace tileattn::cuda
