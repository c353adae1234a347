// What a row of the kernel table calls.
#pragma once

#include "common/launch.cuh"
#include "kernel_table.h"
#include "tileattn/pattern/catalogue.h"
#include "tileattn/pattern/neighborhood.h"

namespace tileattn::cuda {

/// Launch's kernels of all patterns of tokens in sequences.
template <class Launch, class Problem>
Kernels<Problem> kernels_of_sequences() {
  auto run = [](const Problem& problem, void* workspace, void* stream) {
    dispatch_pattern(problem.pattern, [&](auto tag) {
      Launch::template run<typename decltype(tag)::type>(problem, workspace,
                                                         static_cast<cudaStream_t>(stream));
    });
  };
  return {Launch::suits, Launch::template workspace<Dense>, run,
          Launch::template kSharedBytes<Dense>};
}

/// Launch's kernels of grids.
template <class Launch, class Problem>
Kernels<Problem> kernels_of_grids() {
  auto run = [](const Problem& problem, void* workspace, void* stream) {
    Launch::template run<Neighborhood<3>>(problem, workspace, static_cast<cudaStream_t>(stream));
  };
  return {Launch::suits, Launch::template workspace<Neighborhood<3>>, run,
          Launch::template kSharedBytes<Neighborhood<3>>};
}

}  // namespace tileattn::cuda
