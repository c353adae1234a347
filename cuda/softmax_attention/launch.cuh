// Launching kernels, and asking the device what they may use.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernel_table.h"
#include "tileattn/pattern/dispatch.h"

namespace tileattn::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("tileattn: ") + cudaGetErrorString(error));
}

/// Launches `kernel`, which reads `argument`, unless there is nothing to do.
template <class Argument>
void launch(void (*kernel)(Argument), std::int64_t blocks, int threads, std::size_t shared_bytes,
            cudaStream_t stream, const Argument& argument) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error("tileattn: too many tiles");
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  kernel<<<unsigned(blocks), threads, shared_bytes, stream>>>(argument);
  check(cudaGetLastError());
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

/// A row of the kernel table: Launch's kernels of all patterns of tokens in a row.
template <class Launch, class Problem>
Kernels<Problem> kernels_in_a_row() {
  auto run = [](const Problem& problem, void* workspace, void* stream) {
    dispatch_pattern(problem.pattern, [&](auto tag) {
      Launch::template run<typename decltype(tag)::type>(problem, workspace,
                                                         static_cast<cudaStream_t>(stream));
    });
  };
  return {Launch::suits, Launch::template workspace<Dense>, run,
          Launch::template kSharedBytes<Dense>};
}

}  // namespace tileattn::cuda
