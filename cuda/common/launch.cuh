// Launching kernels.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "device.h"

namespace tileattn::cuda {

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

}  // namespace tileattn::cuda
