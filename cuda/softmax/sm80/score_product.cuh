// Products of queries and keys over the head dim.
#pragma once

#include "common/sm80/mma.cuh"

namespace tileattn::cuda {

/// This thread's part of a tile's score products.
template <class Config>
CUTE_DEVICE auto score_product() {
  Tensor product = partition_fragment_C(typename Config::ScoreMma{},
                                        Shape<Int<Config::kQueries>, Int<Config::kKeys>>{});
  clear(product);
  return product;
}

/// product += queries keys^T over the head dim, in the blocks of columns that a
/// swizzled tile keeps together: this bounds the registers that fragments loaded
/// ahead can take.
template <class Config, class Product>
CUTE_DEVICE void multiply_scores(Product& product, const typename Config::Element* queries,
                                 const typename Config::Element* keys) {
  constexpr int kBlock = Config::kDim % 64 == 0 ? 64 : 32;
  CUTE_NO_UNROLL
  for (int column = 0; column < Config::kDim; column += kBlock)
    multiply_shared(typename Config::ScoreMma{}, AlongK{}, AlongK{}, product,
                    queries + column * Config::kQueries,
                    typename SwizzledSmem<Config::kQueries, kBlock>::Plain{},
                    keys + column * Config::kKeys,
                    typename SwizzledSmem<Config::kKeys, kBlock>::Plain{});
}

}  // namespace tileattn::cuda
