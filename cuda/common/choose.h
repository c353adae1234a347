// Which row of the kernel table a call takes.
#pragma once

#include <tuple>

#include "device.h"
#include "kernel_table.h"

namespace tileattn::cuda {

/// Of the rows that the device runs, for head dims up to `dim`, whose kernels suit: the newest
/// architecture, then the smallest bucket of head dims, then the largest budget. Null: there is
/// none.
template <class Kernels, class Suits>
const KernelRow<Kernels>* choose(KernelRows<Kernels> rows, DType dtype, int dim,
                                 const Suits& suits) {
  const Device device = Device::current();
  auto merit = [](const KernelRow<Kernels>& row) {
    return std::tuple(row.architecture, -row.dim, row.budget);
  };
  const KernelRow<Kernels>* best = nullptr;
  for (const auto& row : rows) {
    if (row.dtype != dtype || row.dim < dim || !device.runs(row.architecture, row.budget)) continue;
    if (best && merit(row) < merit(*best)) continue;
    if (suits(row.kernels)) best = &row;
  }
  return best;
}

}  // namespace tileattn::cuda
