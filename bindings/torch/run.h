// Runs a problem where its tensors are.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "device.h"
#include "tensors.h"
#include "tileattn/attention.h"

namespace tileattn::torch_binding {

#ifdef TILEATTN_HAS_CUDA
inline Tensor workspace(const Tensor& like, std::size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<std::int64_t>(bytes)}, ScalarType::Byte);
}
#endif

inline void run(const AttentionForward& problem, const Tensor& q) {
#ifdef TILEATTN_HAS_CUDA
  if (q.is_cuda()) {
    torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
    Tensor memory = workspace(q, cuda::attention_forward_workspace(problem));
    cuda::attention_forward(problem, memory.data_ptr(), current_cuda_stream(q.get_device_index()));
    return;
  }
#endif
  cpu::attention_forward(problem, torch_executor());
}

inline void run(const AttentionBackward& problem, const Tensor& q) {
#ifdef TILEATTN_HAS_CUDA
  if (q.is_cuda()) {
    torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
    Tensor memory = workspace(q, cuda::attention_backward_workspace(problem));
    cuda::attention_backward(problem, memory.data_ptr(), current_cuda_stream(q.get_device_index()));
    return;
  }
#endif
  cpu::attention_backward(problem, torch_executor());
}

}  // namespace tileattn::torch_binding
