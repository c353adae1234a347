// What was built, of all families.
#include "linear/kernel_table.h"
#include "softmax/kernel_table.h"

namespace tileattn::cuda {

namespace {

template <class Problem>
void list(const char* op, KernelRows<Problem> rows, std::vector<BuiltKernels>& to) {
  for (auto* row = rows.begin; row != rows.end; ++row)
    to.push_back({op, row->dtype, row->dim, static_cast<int>(row->architecture),
                  bytes_of(row->budget), row->kernels.shared_bytes});
}

}  // namespace

std::vector<BuiltKernels> built_kernels() {
  std::vector<BuiltKernels> built;
  list("forward", forward_rows(), built);
  list("backward", backward_rows(), built);
  list("neighborhood_forward", neighborhood_forward_rows(), built);
  list("neighborhood_backward", neighborhood_backward_rows(), built);
  for (auto* row = linear_rows().begin; row != linear_rows().end; ++row)
    built.push_back({row->feature_map == FeatureMap::kTaylor2 ? "linear_taylor2" : "linear",
                     row->dtype, row->dim, static_cast<int>(Architecture::kSm80),
                     bytes_of(row->budget), row->shared_bytes});
  return built;
}

}  // namespace tileattn::cuda
