// What was built, of all families.
#include "linear/kernel_table.h"
#include "softmax/kernel_table.h"

namespace tileattn::cuda {
namespace {

template <class Kernels>
void list(const char* op, KernelRows<Kernels> rows, std::vector<BuiltKernels>& to) {
  for (const auto& row : rows)
    to.push_back({op, row.dtype, row.dim, static_cast<int>(row.architecture), bytes_of(row.budget),
                  row.kernels.shared_bytes});
}

}  // namespace

std::vector<BuiltKernels> built_kernels() {
  std::vector<BuiltKernels> built;
  list("forward", forward_rows(), built);
  list("backward", backward_rows(), built);
  list("neighborhood_forward", neighborhood_forward_rows(), built);
  list("neighborhood_backward", neighborhood_backward_rows(), built);
  list("linear", linear_rows(), built);
  list("linear_taylor2", linear_taylor2_rows(), built);
  return built;
}

}  // namespace tileattn::cuda
