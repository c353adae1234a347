// Causal attention of two queries over two keys, small enough to work out by hand.
//
// The scores q_i . k_j are 0 for key 0 and ln 3 for key 1. Query 0 sees key 0 alone: its output is
// v_0 = 4, its lse 0. Query 1 sees both, with weights 1/4 and 3/4: 4/4 + 8 * 3/4 = 7, lse ln 4.
#include <cmath>
#include <cstdio>

#include "tileattn/attention.h"

namespace {

constexpr int kTokens = 2;
constexpr int kDim = 8;  // the smallest head dim

/// A contiguous [1, kTokens, 1, kDim] tensor.
template <class Ref, class Data>
Ref tensor(Data& data) {
  return {&data[0][0], kTokens * kDim, kDim, kDim};
}

bool near(float actual, float expected) { return std::abs(actual - expected) < 1e-6f; }

}  // namespace

int main() {
  using namespace tileattn;
  const float ln3 = std::log(3.0f), ln4 = std::log(4.0f);
  const float q[kTokens][kDim] = {{1}, {1}};
  const float k[kTokens][kDim] = {{0}, {ln3}};
  const float v[kTokens][kDim] = {{4}, {8}};
  float out[kTokens][kDim], lse[kTokens];

  AttentionForward problem;
  problem.batch = problem.heads_q = problem.heads_kv = 1;
  problem.len_q = problem.len_k = kTokens;
  problem.dim = problem.dim_v = kDim;
  problem.q = tensor<ConstTensorRef>(q);
  problem.k = tensor<ConstTensorRef>(k);
  problem.v = tensor<ConstTensorRef>(v);
  problem.out = tensor<TensorRef>(out);
  problem.lse = lse;
  problem.pattern.causal = true;
  cpu::attention_forward(problem, Executor::threads(2));

  const float expected_out[] = {4.0f, 7.0f}, expected_lse[] = {0.0f, ln4};
  bool right = true;
  std::printf("causal attention with the %s kernels\n", cpu::instruction_set());
  for (int i = 0; i < kTokens; ++i) {
    std::printf("query %d: out %.6f (by hand %.6f), lse %.6f (by hand %.6f)\n", i, out[i][0],
                expected_out[i], lse[i], expected_lse[i]);
    right = right && near(out[i][0], expected_out[i]) && near(lse[i], expected_lse[i]);
  }
  std::puts(right ? "all as worked out by hand" : "WRONG");
  return right ? 0 : 1;
}
