// Products on the matrix units of Hopper, which a warpgroup starts and waits for.
#pragma once

#include <cute/tensor.hpp>

namespace tileattn::cuda {

using namespace cute;

/// Starts product (+)= a b^T on the matrix units.
template <bool kAdd, class Mma, class A, class B, class Product>
CUTE_DEVICE void start_product(Mma mma, const A& a, const B& b, Product& product) {
  mma.accumulate_ = kAdd ? GMMA::ScaleOut::One : GMMA::ScaleOut::Zero;
  warpgroup_fence_operand(product);
  warpgroup_arrive();
  CUTE_UNROLL
  for (int k = 0; k < size<2>(a); ++k) {
    gemm(mma, a(_, _, k), b(_, _, k), product);
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
  warpgroup_fence_operand(product);
}

/// Waits until at most kRunning of the products started are under way.
template <int kRunning, class Product>
CUTE_DEVICE void wait_for_product(Product& product) {
  warpgroup_wait<kRunning>();
  warpgroup_fence_operand(product);
}

}  // namespace tileattn::cuda
