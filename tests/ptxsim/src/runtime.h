// What the parts of the runtime API share: registered kernels and variables, errors.
#pragma once
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "module.h"

namespace ptxsim {

struct LoadedBinary {
  std::unique_ptr<Module> module;
};
struct HostFunction {
  LoadedBinary* binary;
  std::string name;
  int max_dynamic_shared = 48 * 1024;
};
struct HostVariable {
  LoadedBinary* binary;
  std::string name;
};

struct Runtime {
  std::unordered_map<const void*, HostFunction> functions;
  std::unordered_map<const void*, HostVariable> variables;
  struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
  };
  std::vector<Configuration> configurations;
  cudaError_t last = cudaSuccess;
  cudaError_t sticky = cudaSuccess;  // a failed kernel poisons the context
  std::string report;                // of the last failed launch
};
Runtime& runtime();

// Remembers an error for cudaGetLastError.
cudaError_t result(cudaError_t error);

// Host address of a registered device variable; nullptr when unknown.
uint8_t* variable_address(const void* symbol);

}  // namespace ptxsim
