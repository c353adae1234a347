// Runs a problem where its tensors are.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "device.h"
#include "tensors.h"
#include "tileattn/attention.h"

namespace tileattn::torch_binding {

/// The entry points of an op.
template <class Problem>
struct Backends {
  void (*cpu)(const Problem&, const Executor&);
#ifdef TILEATTN_HAS_CUDA
  std::size_t (*cuda_workspace)(const Problem&);
  void (*cuda)(const Problem&, void* workspace, void* stream);
#endif
};

#ifdef TILEATTN_HAS_CUDA
#define TILEATTN_BACKENDS(op) {cpu::op, cuda::op##_workspace, cuda::op}
#else
#define TILEATTN_BACKENDS(op) {cpu::op}
#endif

/// Runs the problem where `tensor` is.
template <class Problem>
void run(const Backends<Problem>& op, const Problem& problem, const Tensor& tensor) {
#ifdef TILEATTN_HAS_CUDA
  if (tensor.is_cuda()) {
    torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
    Tensor memory = workspace(tensor, op.cuda_workspace(problem));
    op.cuda(problem, memory.data_ptr(), current_cuda_stream(tensor.get_device_index()));
    return;
  }
#endif
  op.cpu(problem, torch_executor());
}

inline void run(const AttentionForward& problem, const Tensor& q) {
  run<AttentionForward>(TILEATTN_BACKENDS(attention_forward), problem, q);
}

inline void run(const AttentionBackward& problem, const Tensor& q) {
  run<AttentionBackward>(TILEATTN_BACKENDS(attention_backward), problem, q);
}

}  // namespace tileattn::torch_binding
