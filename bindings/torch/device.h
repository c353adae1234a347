// Threads, streams and device memory as torch hands them out.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>

#include "tileattn/executor.h"

// Lives in libtorch_cuda, which CPU builds of torch lack.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace tileattn::torch_binding {

/// Tasks on torch's own thread pool, handed out one at a time because they
/// differ in length.
inline Executor torch_executor() {
  int num_threads = static_cast<int>(torch::stable::get_num_threads());
  auto run = [num_threads](std::int64_t count, const Executor::Task& task) {
    std::atomic<std::int64_t> next{0};
    auto work = [&](std::int64_t, std::int64_t) {
      for (std::int64_t i; (i = next.fetch_add(1)) < count;) task(i);
    };
    torch::stable::parallel_for(0, std::min<std::int64_t>(count, num_threads), 1, work);
  };
  return {num_threads, run};
}

inline void* current_cuda_stream(std::int32_t device_index) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

/// Device memory for a call of a CUDA kernel.
inline torch::stable::Tensor workspace(const torch::stable::Tensor& like, std::size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<std::int64_t>(bytes)},
                                  torch::headeronly::ScalarType::Byte);
}

}  // namespace tileattn::torch_binding
