// The instantiated kernels, as the entry points (attention.cpp) find them. The
// table itself is generated from kernels.cmake.
#pragma once

#include <cstddef>

#include "common/architecture.h"
#include "tileattn/attention.h"

namespace tileattn::cuda {

/// The kernels of one op for one dtype, head-dim bucket and shared-memory budget.
template <class Problem>
struct Kernels {
  bool (*suits)(const Problem&);  // whether these kernels take it, for what a row does not tell
  std::size_t (*workspace)(const Problem&);
  void (*run)(const Problem&, void* workspace, void* stream);
  int shared_bytes;  // of a block, at most
};

template <class Problem>
struct KernelRow {
  DType dtype;
  int dim;  // head dims up to this one, padded
  Architecture architecture;
  SharedBudget budget;
  Kernels<Problem> kernels;
};

template <class Problem>
struct KernelRows {
  const KernelRow<Problem>* begin;
  const KernelRow<Problem>* end;
};

KernelRows<AttentionForward> forward_rows();
KernelRows<AttentionBackward> backward_rows();
KernelRows<AttentionForward> neighborhood_forward_rows();
KernelRows<AttentionBackward> neighborhood_backward_rows();

}  // namespace tileattn::cuda
