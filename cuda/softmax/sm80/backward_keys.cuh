// The key-major backward kernel: dK, dV, the bias gradient and a share of dQ.
//
// Grid: key slots x heads_kv, as one index with the slot running fastest.
// Block: one key tile of one kv head, against every query tile that its pattern
// names in every query head of the group, so that dK and dV stay in registers
// and no key or value is repeated. dQ is added to a workspace by fp32 atomics.
// Shared memory: K, V; kStages of Q, dO, lse and delta, streamed by cp.async;
// P; dS; column sums of the bias gradient. At the end dK and dV take the place of K and V.
#pragma once

#include "common/sm80/copy.cuh"
#include "config.cuh"
#include "score_product.cuh"
#include "softmax/params.h"
#include "softmax/score_gradient.cuh"

namespace tileattn::cuda {

template <class Config, class Pattern>
struct alignas(128) KeyMajorShared {
  using Element = typename Config::Element;
  Element k[Config::kKeys * Config::kDim];
  Element v[Config::kKeys * Config::kDim];
  Element q[Config::kStages][Config::kQueries * Config::kDim];
  Element dout[Config::kStages][Config::kQueries * Config::kDim];
  Element p[Config::kQueries * Config::kKeys];
  Element ds[Config::kQueries * Config::kKeys];
  SharedRowStats<Config> rows[Config::kStages];
  GradientShared<Config, Pattern> gradient;
};

template <class Config, class Pattern>
class KeyMajor {
 public:
  using Shared = KeyMajorShared<Config, Pattern>;
  using Element = typename Config::Element;
  using QuerySmem = typename Config::QuerySmem;
  using KeySmem = typename Config::KeySmem;
  using ScoreSmem = typename Config::ScoreSmem;

  CUTE_DEVICE KeyMajor(const BackwardParams& params, const Tiles<Config, Pattern>& tiles,
                       int head_kv)
      : params_(params), problem_(params.problem), tiles_(tiles), head_kv_(head_kv) {}

  CUTE_DEVICE void fetch_keys(Shared& shared) const {
    load_rows<Config>(shared.k, typename KeySmem::Plain{},
                      rows<const Element>(problem_.k, problem_.extra_k), problem_.dim);
    load_rows<Config>(shared.v, typename KeySmem::Plain{},
                      rows<const Element>(problem_.v, problem_.extra_v), problem_.dim_v);
  }

  template <class Tile>
  CUTE_DEVICE void fetch_queries(Shared& shared, int stage, int head,
                                 const Tile& query_tile) const {
    load_rows<Config>(shared.q[stage], typename QuerySmem::Plain{},
                      tiles_.template query_rows<const Element>(problem_.q, query_tile, head),
                      problem_.dim);
    load_rows<Config>(shared.dout[stage], typename QuerySmem::Plain{},
                      tiles_.template query_rows<const Element>(problem_.dout, query_tile, head),
                      problem_.dim_v);
    shared.rows[stage].fetch(problem_, tiles_, query_tile, head);
  }

  /// dQ of the tile, to the workspace that convert_dq_kernel reads.
  template <class Tile>
  CUTE_DEVICE void add_dq(const Shared& shared, int head, const Tile& query_tile) const {
    typename Config::QueryGradMma mma;
    Tensor dq = partition_fragment_C(mma, Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
    clear(dq);
    multiply_shared(mma, AlongK{}, AcrossK{}, dq, shared.ds, typename ScoreSmem::Plain{}, shared.k,
                    typename KeySmem::Transposed{});
    std::int64_t slot = tiles_.query_slot(query_tile);
    float* to = params_.dq_sum + threadIdx.x +
                (slot * problem_.heads_q + head) * Config::kQueries * Config::kDim;
    CUTE_UNROLL
    for (int n = 0; n < size(dq); ++n) atomicAdd(to + n * Config::kThreads, dq(n));
  }

  template <class Product>
  CUTE_DEVICE void store(Shared& shared, Product& dk, Product& dv) const {
    CUTE_UNROLL
    for (int n = 0; n < size(dk); ++n) dk(n) *= problem_.scale;
    typename Config::KeyGradMma mma;
    round_to_shared(mma, dk, shared.k, typename KeySmem::Plain{});
    round_to_shared(mma, dv, shared.v, typename KeySmem::Plain{});
    __syncthreads();
    store_rows<Config>(shared.k, typename KeySmem::Plain{},
                       rows<Element>(problem_.dk, problem_.dextra_k), problem_.dim);
    store_rows<Config>(shared.v, typename KeySmem::Plain{},
                       rows<Element>(problem_.dv, problem_.dextra_v), problem_.dim_v);
  }

 private:
  template <class T, class Ref>
  CUTE_DEVICE auto rows(const Ref& tensor, const Ref& extra) const {
    return tiles_.template own_key_rows<T>(tensor, extra, head_kv_);
  }

  const BackwardParams& params_;
  const AttentionBackward& problem_;
  const Tiles<Config, Pattern>& tiles_;
  int head_kv_;
};

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_keys_kernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<KeyMajorShared<Config, Pattern>*>(shared_memory);
  using QuerySmem = typename Config::QuerySmem;
  using ScoreSmem = typename Config::ScoreSmem;

  const AttentionBackward& problem = params.problem;
  auto slots = Tiles<Config, Pattern>::key_slots(problem, params.plan);
  int slot = blockIdx.x % slots.count(), head_kv = blockIdx.x / slots.count();
  // Patterns do not differ within a group.
  int group = problem.heads_q / problem.heads_kv, heads_end = (head_kv + 1) * group;
  auto tiles = Tiles<Config, Pattern>::of_slot(problem, params.plan, slots, slot, head_kv * group);
  if (!tiles.exists()) return;

  KeyMajor<Config, Pattern> tile(params, tiles, head_kv);
  ScoreGradient<Config, Pattern> gradient(problem, tiles, &shared.gradient);
  auto key_tile = tiles.own();
  auto visits = tiles.queries();
  // A step is a visit of a query head.
  Visit<typename decltype(visits)::Tile> next;
  int next_head = head_kv * group;
  bool more = visits.next(next);
  auto advance = [&] {
    if (visits.next(next)) return;
    more = ++next_head < heads_end;
    if (!more) return;
    visits = tiles.queries();
    visits.next(next);
  };
  auto fetch = [&](int stage) {
    if (more) tile.fetch_queries(shared, stage, next_head, next.tile);
    cp_async_fence();
  };

  shared.gradient.clear();
  tile.fetch_keys(shared);
  fetch(0);
  if (more) gradient.prepare(next.tile, key_tile);

  Tensor dk = partition_fragment_C(typename Config::KeyGradMma{},
                                   Shape<Int<Config::kKeys>, Int<Config::kDim>>{});
  Tensor dv = make_fragment_like(dk);
  clear(dk);
  clear(dv);
  int stage = 0;
  CUTE_NO_UNROLL
  while (more) {
    int head = next_head;
    auto visit = next;
    advance();
    cp_async_wait<0>();
    __syncthreads();  // Q and dO are here; P, dS and the other stage are free
    if constexpr (Config::kStages == 2) fetch(stage ^ 1);

    gradient.set_head(head);
    Tensor p = score_product<Config>();
    Tensor ds = score_product<Config>();
    multiply_scores<Config>(p, shared.q[stage], shared.k);
    multiply_scores<Config>(ds, shared.dout[stage], shared.v);
    gradient(p, ds, shared.rows[stage], visit.tile, key_tile, visit.cover);
    typename Config::ScoreMma score_mma;
    round_to_shared(score_mma, p, shared.p, typename ScoreSmem::Plain{});
    round_to_shared(score_mma, ds, shared.ds, typename ScoreSmem::Plain{});
    __syncthreads();  // P, dS and the column sums are complete

    if (next_head != head) gradient.flush_columns(key_tile);
    if (more) gradient.prepare(next.tile, key_tile);
    typename Config::KeyGradMma key_mma;
    multiply_shared(key_mma, AcrossK{}, AcrossK{}, dv, shared.p, typename ScoreSmem::Transposed{},
                    shared.dout[stage], typename QuerySmem::Transposed{});
    multiply_shared(key_mma, AcrossK{}, AcrossK{}, dk, shared.ds, typename ScoreSmem::Transposed{},
                    shared.q[stage], typename QuerySmem::Transposed{});
    if constexpr (Config::kStages == 1) {
      __syncthreads();  // Q and dO may be replaced
      fetch(stage);
    }
    if (params.dq_sum) tile.add_dq(shared, head, visit.tile);
    if constexpr (Config::kStages == 2) stage ^= 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // no one reads or fills K and V any more
  tile.store(shared, dk, dv);
}

}  // namespace tileattn::cuda
