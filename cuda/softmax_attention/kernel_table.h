// The instantiated kernels, as the entry points (attention.cpp) find them. The
// table itself is generated from kernels.cmake.
#pragma once

#include <cstddef>

#include "tileattn/attention.h"

namespace tileattn::cuda {

/// Shared memory that a block may ask for: 99 KiB on sm_86 and sm_89, 163 KiB
/// on sm_80, 227 KiB on sm_90.
enum class SharedBudget : int { k99KiB = 99, k163KiB = 163, k227KiB = 227 };

/// Compute capability that a row's instructions need: 80 or more, or 90 exactly.
enum class Architecture : int { kSm80 = 80, kSm90a = 90 };

constexpr int bytes_of(SharedBudget budget) { return static_cast<int>(budget) * 1024; }

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
