// The key-major backward kernel: dK, dV, the bias gradient and a share of dQ.
//
// Grid: key slots x heads_kv, as one index with the slot running fastest.
// Block: one key tile of one kv head, against every query tile that its pattern
// names in every query head of the group, so that dK and dV stay in registers
// and no key or value is repeated. dQ is added to a workspace by fp32 atomics.
// Shared memory: K, V; kStages of Q, dO, lse and delta, streamed by cp.async;
// P; dS; column sums of the bias gradient. At the end dK and dV take the place of K and V.
#pragma once

#include "backward_scores.cuh"

namespace tileattn::cuda {

template <class Config>
struct alignas(128) KeyMajorShared {
  using Element = typename Config::Element;
  Element k[Config::kKeys * Config::kDim];
  Element v[Config::kKeys * Config::kDim];
  Element q[Config::kStages][Config::kQueries * Config::kDim];
  Element dout[Config::kStages][Config::kQueries * Config::kDim];
  Element p[Config::kQueries * Config::kKeys];
  Element ds[Config::kQueries * Config::kKeys];
  SharedRowStats<Config> rows[Config::kStages];
  float column_sums[Config::kScoreWarpsM * Config::kKeys];
};

template <class Config>
class KeyMajor {
 public:
  using Element = typename Config::Element;
  using QuerySmem = typename Config::QuerySmem;
  using KeySmem = typename Config::KeySmem;
  using ScoreSmem = typename Config::ScoreSmem;

  CUTE_DEVICE KeyMajor(const BackwardParams& params, const Sequence& sequence, int head_kv,
                       int key_tile, int rows)
      : params_(params),
        problem_(params.problem),
        sequence_(sequence),
        head_kv_(head_kv),
        first_key_(key_tile * Config::kKeys),
        rows_(rows) {}

  CUTE_DEVICE void fetch_keys(KeyMajorShared<Config>& shared) const {
    load_rows<Config>(shared.k, typename KeySmem::Plain{}, key_row<const Element>(problem_.k),
                      problem_.k.token_stride, rows_, problem_.dim);
    load_rows<Config>(shared.v, typename KeySmem::Plain{}, key_row<const Element>(problem_.v),
                      problem_.v.token_stride, rows_, problem_.dim_v);
  }

  CUTE_DEVICE void fetch_queries(KeyMajorShared<Config>& shared, int stage, int head,
                                 int query_tile) const {
    int first = query_tile * Config::kQueries, rows = sequence_.len_q - first;
    load_rows<Config>(shared.q[stage], typename QuerySmem::Plain{},
                      query_row<const Element>(problem_.q, first, head), problem_.q.token_stride,
                      rows, problem_.dim);
    load_rows<Config>(shared.dout[stage], typename QuerySmem::Plain{},
                      query_row<const Element>(problem_.dout, first, head),
                      problem_.dout.token_stride, rows, problem_.dim_v);
    shared.rows[stage].fetch(problem_, sequence_, head, query_tile);
  }

  /// dQ of the tile, to the workspace that convert_dq_kernel reads.
  CUTE_DEVICE void add_dq(const KeyMajorShared<Config>& shared, int head, int query_tile) const {
    typename Config::QueryGradMma mma;
    Tensor dq = partition_fragment_C(mma, Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
    clear(dq);
    multiply_shared(mma, AlongK{}, AcrossK{}, dq, shared.ds, typename ScoreSmem::Plain{}, shared.k,
                    typename KeySmem::Transposed{});
    int slot = query_slots(problem_, Config::kQueries).first(sequence_.index) + query_tile;
    float* to = params_.dq_sum + threadIdx.x +
                (std::int64_t{slot} * problem_.heads_q + head) * Config::kQueries * Config::kDim;
    CUTE_UNROLL
    for (int n = 0; n < size(dq); ++n) atomicAdd(to + n * Config::kThreads, dq(n));
  }

  template <class Product>
  CUTE_DEVICE void store(KeyMajorShared<Config>& shared, Product& dk, Product& dv) const {
    CUTE_UNROLL
    for (int n = 0; n < size(dk); ++n) dk(n) *= problem_.scale;
    typename Config::KeyGradMma mma;
    round_to_shared(mma, dk, shared.k, typename KeySmem::Plain{});
    round_to_shared(mma, dv, shared.v, typename KeySmem::Plain{});
    __syncthreads();
    store_rows<Config>(shared.k, typename KeySmem::Plain{}, key_row<Element>(problem_.dk),
                       problem_.dk.token_stride, rows_, problem_.dim);
    store_rows<Config>(shared.v, typename KeySmem::Plain{}, key_row<Element>(problem_.dv),
                       problem_.dv.token_stride, rows_, problem_.dim_v);
  }

 private:
  template <class T, class Ref>
  CUTE_DEVICE T* key_row(const Ref& tensor) const {
    return row_pointer<T>(tensor, sequence_.entry, sequence_.first_k + first_key_, head_kv_);
  }
  template <class T, class Ref>
  CUTE_DEVICE T* query_row(const Ref& tensor, int first, int head) const {
    return row_pointer<T>(tensor, sequence_.entry, sequence_.first_q + first, head);
  }

  const BackwardParams& params_;
  const AttentionBackward& problem_;
  const Sequence& sequence_;
  int head_kv_;
  int first_key_;
  int rows_;
};

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_keys_kernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<KeyMajorShared<Config>*>(shared_memory);
  using QuerySmem = typename Config::QuerySmem;
  using ScoreSmem = typename Config::ScoreSmem;

  const AttentionBackward& problem = params.problem;
  TileSlots slots = key_slots(problem, Config::kKeys);
  int slot = blockIdx.x % slots.count(), head_kv = blockIdx.x / slots.count();
  Sequence sequence(problem, slots.owner(slot));
  int key_tile = slot - slots.first(sequence.index);
  int rows = slots.tokens(sequence.index).size() - key_tile * Config::kKeys;
  if (key_tile < 0 || rows <= 0) return;

  KeyMajor<Config> tile(params, sequence, head_kv, key_tile, rows);
  ScoreGradient<Config, Pattern> gradient(problem, sequence, shared.column_sums);
  auto walk = gradient.pattern().queries_of(key_tile, Config::kTiling);
  int group = problem.heads_q / problem.heads_kv, visits = walk.size();
  int heads_end = visits > 0 ? (head_kv + 1) * group : 0;
  // A step is the visit number `visit` of the query head `head`.
  auto advance = [&](int& head, int& visit) {
    if (++visit == visits) visit = 0, ++head;
  };
  auto fetch = [&](int stage, int head, int visit) {
    if (head < heads_end) tile.fetch_queries(shared, stage, head, walk[visit]);
    cp_async_fence();
  };

  for (int n = threadIdx.x; n < Config::kScoreWarpsM * Config::kKeys; n += Config::kThreads)
    shared.column_sums[n] = 0.0f;
  tile.fetch_keys(shared);
  fetch(0, head_kv * group, 0);

  Tensor dk = partition_fragment_C(typename Config::KeyGradMma{},
                                   Shape<Int<Config::kKeys>, Int<Config::kDim>>{});
  Tensor dv = make_fragment_like(dk);
  clear(dk);
  clear(dv);
  int next_head = head_kv * group, next_visit = 0, stage = 0;
  CUTE_NO_UNROLL
  while (next_head < heads_end) {
    int head = next_head, query_tile = walk[next_visit];
    advance(next_head, next_visit);
    cp_async_wait<0>();
    __syncthreads();  // Q and dO are here; P, dS and the other stage are free
    if constexpr (Config::kStages == 2) fetch(stage ^ 1, next_head, next_visit);

    gradient.set_head(head);
    Tensor p = score_product<Config>();
    Tensor ds = score_product<Config>();
    multiply_scores<Config>(p, shared.q[stage], shared.k);
    multiply_scores<Config>(ds, shared.dout[stage], shared.v);
    gradient(p, ds, shared.rows[stage], query_tile, key_tile);
    typename Config::ScoreMma score_mma;
    round_to_shared(score_mma, p, shared.p, typename ScoreSmem::Plain{});
    round_to_shared(score_mma, ds, shared.ds, typename ScoreSmem::Plain{});
    __syncthreads();  // P, dS and the column sums are complete

    if (next_visit == 0) gradient.flush_columns(key_tile);
    typename Config::KeyGradMma key_mma;
    multiply_shared(key_mma, AcrossK{}, AcrossK{}, dv, shared.p, typename ScoreSmem::Transposed{},
                    shared.dout[stage], typename QuerySmem::Transposed{});
    multiply_shared(key_mma, AcrossK{}, AcrossK{}, dk, shared.ds, typename ScoreSmem::Transposed{},
                    shared.q[stage], typename QuerySmem::Transposed{});
    if constexpr (Config::kStages == 1) {
      __syncthreads();  // Q and dO may be replaced
      fetch(stage, next_head, next_visit);
    }
    if (params.dq_sum) tile.add_dq(shared, head, query_tile);
    if constexpr (Config::kStages == 2) stage ^= 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // no one reads or fills K and V any more
  tile.store(shared, dk, dv);
}

}  // namespace tileattn::cuda
