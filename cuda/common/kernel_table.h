// A row of the kernel table, which is generated from kernels.cmake: kernels, and what they take.
#pragma once

#include "tileattn/tensor_ref.h"

namespace tileattn::cuda {

/// Shared memory that a block may ask for: 99 KiB on sm_86 and sm_89, 163 KiB
/// on sm_80, 227 KiB on sm_90.
enum class SharedBudget : int { k99KiB = 99, k163KiB = 163, k227KiB = 227 };

/// Compute capability that instructions need: 80 or more, or 90 exactly.
enum class Architecture : int { kSm80 = 80, kSm90 = 90 };

constexpr int bytes_of(SharedBudget budget) { return static_cast<int>(budget) * 1024; }

/// The kernels of one op for one element type, bucket of head dims, architecture and budget.
template <class Kernels>
struct KernelRow {
  DType dtype;
  int dim;  // head dims up to this one, padded
  Architecture architecture;
  SharedBudget budget;
  Kernels kernels;
};

/// Those of one op.
template <class Kernels>
struct KernelRows {
  using Row = KernelRow<Kernels>;
  const Row *first, *last;

  const Row* begin() const { return first; }
  const Row* end() const { return last; }
};

}  // namespace tileattn::cuda
