// Entry points: from a problem to the kernels that were built for it.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/device.h"
#include "kernel_table.h"
#include "tileattn/planner.h"

namespace tileattn::cuda {
namespace {

void check(const AttentionProblem& p) {
  auto valid_dim = [](int dim) { return dim > 0 && dim % 8 == 0; };
  if (!valid_dim(p.dim) || !valid_dim(p.dim_v))
    throw std::invalid_argument("tileattn: head dims must be multiples of 8");
  if (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0)
    throw std::invalid_argument("tileattn: heads_kv must divide heads_q");
  if (p.neighborhood.rank > 0) planner::check(p.neighborhood);
  if ((p.cu_seqlens_q == nullptr) != (p.cu_seqlens_k == nullptr))
    throw std::invalid_argument("tileattn: cu_seqlens_q and cu_seqlens_k go together");
}

/// Of the rows that can take the problem: the newest architecture, then the smallest bucket of
/// head dims, then the largest budget.
template <class Problem>
const Kernels<Problem>& find(KernelRows<Problem> rows, const Problem& p) {
  check(p);
  const int dim = std::max(p.dim, p.dim_v);
  const Device device = Device::current();
  auto merit = [](const KernelRow<Problem>& row) {
    return std::tuple(row.architecture, -row.dim, row.budget);
  };
  const KernelRow<Problem>* best = nullptr;
  for (auto* row = rows.begin; row != rows.end; ++row) {
    if (row->dtype != p.dtype || row->dim < dim || !device.runs(row->architecture, row->budget))
      continue;
    if (best && merit(*row) < merit(*best)) continue;
    if (row->kernels.suits(p)) best = row;
  }
  if (!best)
    throw std::invalid_argument("tileattn: no CUDA kernel was built for head dim " +
                                std::to_string(dim) + " and this dtype and device");
  return best->kernels;
}

const Kernels<AttentionForward>& kernels_for(const AttentionForward& p) {
  return find(p.neighborhood.rank > 0 ? neighborhood_forward_rows() : forward_rows(), p);
}
const Kernels<AttentionBackward>& kernels_for(const AttentionBackward& p) {
  return find(p.neighborhood.rank > 0 ? neighborhood_backward_rows() : backward_rows(), p);
}

}  // namespace

std::size_t attention_forward_workspace(const AttentionForward& problem) {
  return kernels_for(problem).workspace(problem);
}

std::size_t attention_backward_workspace(const AttentionBackward& problem) {
  return kernels_for(problem).workspace(problem);
}

void attention_forward(const AttentionForward& problem, void* workspace, void* stream) {
  kernels_for(problem).run(problem, workspace, stream);
}

void attention_backward(const AttentionBackward& problem, void* workspace, void* stream) {
  kernels_for(problem).run(problem, workspace, stream);
}

}  // namespace tileattn::cuda
