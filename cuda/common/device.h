// Asking the device what it is and what kernels may use.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "kernel_table.h"

namespace tileattn::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("tileattn: ") + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

/// What the current device can run.
struct Device {
  int capability;
  int shared_bytes;  // of a block, at most
  int multiprocessors;

  static Device current() {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("tileattn: no CUDA device");
    auto get = [&](cudaDeviceAttr attribute) {
      int value = 0;
      if (cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess)
        throw std::runtime_error("tileattn: the CUDA device cannot be asked what it is");
      return value;
    };
    return {get(cudaDevAttrComputeCapabilityMajor) * 10 + get(cudaDevAttrComputeCapabilityMinor),
            get(cudaDevAttrMaxSharedMemoryPerBlockOptin), get(cudaDevAttrMultiProcessorCount)};
  }

  bool runs(Architecture architecture, SharedBudget budget) const {
    bool has_instructions =
        architecture == Architecture::kSm90 ? capability == 90 : capability >= 80;
    return has_instructions && bytes_of(budget) <= shared_bytes;
  }
};

}  // namespace tileattn::cuda
