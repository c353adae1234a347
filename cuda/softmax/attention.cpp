// Entry points: from a problem to the kernels that were built for it.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/choose.h"
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

template <class Problem>
const Kernels<Problem>& find(KernelRows<Kernels<Problem>> rows, const Problem& p) {
  check(p);
  const int dim = std::max(p.dim, p.dim_v);
  auto suits = [&](const Kernels<Problem>& kernels) { return kernels.suits(p); };
  if (auto* row = choose(rows, p.dtype, dim, suits)) return row->kernels;
  throw std::invalid_argument("tileattn: no CUDA kernel was built for head dim " +
                              std::to_string(dim) + " and this dtype and device");
}

const ForwardKernels& kernels_for(const AttentionForward& p) {
  return find(p.neighborhood.rank > 0 ? neighborhood_forward_rows() : forward_rows(), p);
}
const BackwardKernels& kernels_for(const AttentionBackward& p) {
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
