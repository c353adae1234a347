// The instantiated kernels of softmax attention, as the entry points (attention.cpp) find them.
#pragma once

#include <cstddef>

#include "common/kernel_table.h"
#include "tileattn/attention.h"

namespace tileattn::cuda {

/// The kernels of one op.
template <class Problem>
struct Kernels {
  bool (*suits)(const Problem&);  // whether these kernels take it, for what a row does not tell
  std::size_t (*workspace)(const Problem&);
  void (*run)(const Problem&, void* workspace, void* stream);
  int shared_bytes;  // of a block, at most
};

using ForwardKernels = Kernels<AttentionForward>;
using BackwardKernels = Kernels<AttentionBackward>;

KernelRows<ForwardKernels> forward_rows();
KernelRows<BackwardKernels> backward_rows();
KernelRows<ForwardKernels> neighborhood_forward_rows();
KernelRows<BackwardKernels> neighborhood_backward_rows();

}  // namespace tileattn::cuda
