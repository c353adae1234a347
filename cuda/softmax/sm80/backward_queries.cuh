// The query-major backward kernel: dQ without atomics, for bit-equal gradients.
//
// Grid: query slots x heads_q, as one index with the slot running fastest.
// Block: one query tile of one head, against the key tiles that the forward
// visits; scores and dP are computed again.
// Shared memory: Q, dO, lse, delta; kStages of K and V, streamed by cp.async; dS. At the
// end dQ takes the place of Q.
#pragma once

#include "common/sm80/copy.cuh"
#include "config.cuh"
#include "score_product.cuh"
#include "softmax/params.h"
#include "softmax/score_gradient.cuh"

namespace tileattn::cuda {

template <class Config, class Pattern>
struct alignas(128) QueryMajorShared : VisibleBits<Config, Pattern> {
  using Element = typename Config::Element;
  Element q[Config::kQueries * Config::kDim];
  Element dout[Config::kQueries * Config::kDim];
  Element k[Config::kStages][Config::kKeys * Config::kDim];
  Element v[Config::kStages][Config::kKeys * Config::kDim];
  Element ds[Config::kQueries * Config::kKeys];
  SharedRowStats<Config> rows;
};

template <class Config, class Pattern>
class QueryMajor {
 public:
  using Shared = QueryMajorShared<Config, Pattern>;
  using Element = typename Config::Element;
  using QuerySmem = typename Config::QuerySmem;
  using KeySmem = typename Config::KeySmem;

  CUTE_DEVICE QueryMajor(const AttentionBackward& problem, const Tiles<Config, Pattern>& tiles,
                         int head)
      : problem_(problem), tiles_(tiles), head_(head) {}

  CUTE_DEVICE void fetch_queries(Shared& shared) const {
    load_rows<Config>(shared.q, typename QuerySmem::Plain{},
                      tiles_.template own_query_rows<const Element>(problem_.q, head_),
                      problem_.dim);
    load_rows<Config>(shared.dout, typename QuerySmem::Plain{},
                      tiles_.template own_query_rows<const Element>(problem_.dout, head_),
                      problem_.dim_v);
    shared.rows.fetch(problem_, tiles_, tiles_.own(), head_);
  }

  template <class Tile>
  CUTE_DEVICE void fetch_keys(Shared& shared, int stage, const Tile& key_tile) const {
    int head_kv = head_ / (problem_.heads_q / problem_.heads_kv);
    load_rows<Config>(
        shared.k[stage], typename KeySmem::Plain{},
        tiles_.template key_rows<const Element>(problem_.k, problem_.extra_k, key_tile, head_kv),
        problem_.dim);
    load_rows<Config>(
        shared.v[stage], typename KeySmem::Plain{},
        tiles_.template key_rows<const Element>(problem_.v, problem_.extra_v, key_tile, head_kv),
        problem_.dim_v);
  }

  template <class Product>
  CUTE_DEVICE void store(Shared& shared, Product& dq) const {
    CUTE_UNROLL
    for (int n = 0; n < size(dq); ++n) dq(n) *= problem_.scale;
    round_to_shared(typename Config::QueryGradMma{}, dq, shared.q, typename QuerySmem::Plain{});
    __syncthreads();
    store_rows<Config>(shared.q, typename QuerySmem::Plain{},
                       tiles_.template own_query_rows<Element>(problem_.dq, head_), problem_.dim);
  }

 private:
  const AttentionBackward& problem_;
  const Tiles<Config, Pattern>& tiles_;
  int head_;
};

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_queries_kernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<QueryMajorShared<Config, Pattern>*>(shared_memory);
  using KeySmem = typename Config::KeySmem;
  using ScoreSmem = typename Config::ScoreSmem;

  const AttentionBackward& problem = params.problem;
  auto slots = Tiles<Config, Pattern>::query_slots(problem, params.plan);
  int slot = blockIdx.x % slots.count(), head = blockIdx.x / slots.count();
  auto tiles = Tiles<Config, Pattern>::of_slot(problem, params.plan, slots, slot, head);
  if (!tiles.exists()) return;

  QueryMajor<Config, Pattern> tile(problem, tiles, head);
  ScoreGradient<Config, Pattern> gradient(problem, tiles, &shared);
  auto visits = tiles.keys();
  Visit<typename decltype(visits)::Tile> visit, next;
  bool more = tiles.attends() && visits.next(next);
  auto fetch = [&](int stage) {
    if (more) tile.fetch_keys(shared, stage, next.tile);
    cp_async_fence();
  };
  tile.fetch_queries(shared);
  fetch(0);
  if (more) {
    gradient.set_head(head);
    gradient.prepare(tiles.own(), next.tile);
  }

  Tensor dq = partition_fragment_C(typename Config::QueryGradMma{},
                                   Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
  clear(dq);
  int stage = 0;
  CUTE_NO_UNROLL
  while (more) {
    visit = next;
    more = visits.next(next);
    cp_async_wait<0>();
    __syncthreads();  // K and V are here; dS and the other stage are free
    if constexpr (Config::kStages == 2) fetch(stage ^ 1);

    Tensor p = score_product<Config>();
    Tensor ds = score_product<Config>();
    multiply_scores<Config>(p, shared.q, shared.k[stage]);
    multiply_scores<Config>(ds, shared.dout, shared.v[stage]);
    gradient(p, ds, shared.rows, tiles.own(), visit.tile, visit.cover);
    round_to_shared(typename Config::ScoreMma{}, ds, shared.ds, typename ScoreSmem::Plain{});
    __syncthreads();  // dS is complete

    if (more) gradient.prepare(tiles.own(), next.tile);
    multiply_shared(typename Config::QueryGradMma{}, AlongK{}, AcrossK{}, dq, shared.ds,
                    typename ScoreSmem::Plain{}, shared.k[stage], typename KeySmem::Transposed{});
    if constexpr (Config::kStages == 1) {
      __syncthreads();  // K and V may be replaced
      fetch(stage);
    }
    if constexpr (Config::kStages == 2) stage ^= 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // no one reads or fills Q any more
  tile.store(shared, dq);
}

}  // namespace tileattn::cuda
