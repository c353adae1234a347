// Launching kernels, and rows of the kernel table that hold them.
#pragma once

#include <cutlass/numeric_types.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "device.h"
#include "kernel_table.h"

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

template <class Element>
constexpr DType dtype_of() {
  constexpr bool kHalf = std::is_same_v<Element, cutlass::half_t>;
  static_assert(kHalf || std::is_same_v<Element, cutlass::bfloat16_t>);
  return kHalf ? DType::kFloat16 : DType::kBFloat16;
}

}  // namespace tileattn::cuda
