// The query-major backward kernel: dQ without atomics, for bit-equal gradients.
//
// Grid: query slots x heads_q, as one index with the slot running fastest.
// Block: one query tile of one head, against the key tiles that the forward
// visits; scores and dP are computed again.
// Shared memory: Q, dO, lse, delta; kStages of K and V, streamed by cp.async; dS. At the
// end dQ takes the place of Q.
#pragma once

#include "backward_scores.cuh"

namespace tileattn::cuda {

template <class Config>
struct alignas(128) QueryMajorShared {
  using Element = typename Config::Element;
  Element q[Config::kQueries * Config::kDim];
  Element dout[Config::kQueries * Config::kDim];
  Element k[Config::kStages][Config::kKeys * Config::kDim];
  Element v[Config::kStages][Config::kKeys * Config::kDim];
  Element ds[Config::kQueries * Config::kKeys];
  SharedRowStats<Config> rows;
};

template <class Config>
class QueryMajor {
 public:
  using Element = typename Config::Element;
  using QuerySmem = typename Config::QuerySmem;
  using KeySmem = typename Config::KeySmem;

  CUTE_DEVICE QueryMajor(const AttentionBackward& problem, const Sequence& sequence, int head,
                         int query_tile, int rows)
      : problem_(problem),
        sequence_(sequence),
        head_(head),
        first_query_(query_tile * Config::kQueries),
        rows_(rows) {}

  CUTE_DEVICE void fetch_queries(QueryMajorShared<Config>& shared) const {
    load_rows<Config>(shared.q, typename QuerySmem::Plain{}, query_row<const Element>(problem_.q),
                      problem_.q.token_stride, rows_, problem_.dim);
    load_rows<Config>(shared.dout, typename QuerySmem::Plain{},
                      query_row<const Element>(problem_.dout), problem_.dout.token_stride, rows_,
                      problem_.dim_v);
    shared.rows.fetch(problem_, sequence_, head_, first_query_ / Config::kQueries);
  }

  CUTE_DEVICE void fetch_keys(QueryMajorShared<Config>& shared, int stage, int key_tile) const {
    int first = key_tile * Config::kKeys, rows = sequence_.len_k - first;
    load_rows<Config>(shared.k[stage], typename KeySmem::Plain{},
                      key_row<const Element>(problem_.k, first), problem_.k.token_stride, rows,
                      problem_.dim);
    load_rows<Config>(shared.v[stage], typename KeySmem::Plain{},
                      key_row<const Element>(problem_.v, first), problem_.v.token_stride, rows,
                      problem_.dim_v);
  }

  template <class Product>
  CUTE_DEVICE void store(QueryMajorShared<Config>& shared, Product& dq) const {
    CUTE_UNROLL
    for (int n = 0; n < size(dq); ++n) dq(n) *= problem_.scale;
    round_to_shared(typename Config::QueryGradMma{}, dq, shared.q, typename QuerySmem::Plain{});
    __syncthreads();
    store_rows<Config>(shared.q, typename QuerySmem::Plain{}, query_row<Element>(problem_.dq),
                       problem_.dq.token_stride, rows_, problem_.dim);
  }

 private:
  template <class T, class Ref>
  CUTE_DEVICE T* query_row(const Ref& tensor) const {
    return row_pointer<T>(tensor, sequence_.entry, sequence_.first_q + first_query_, head_);
  }
  template <class T, class Ref>
  CUTE_DEVICE T* key_row(const Ref& tensor, int first) const {
    int head_kv = head_ / (problem_.heads_q / problem_.heads_kv);
    return row_pointer<T>(tensor, sequence_.entry, sequence_.first_k + first, head_kv);
  }

  const AttentionBackward& problem_;
  const Sequence& sequence_;
  int head_;
  int first_query_;
  int rows_;
};

template <class Config, class Pattern>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_queries_kernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ uint128_t shared_memory[];
  auto& shared = *reinterpret_cast<QueryMajorShared<Config>*>(shared_memory);
  using KeySmem = typename Config::KeySmem;
  using ScoreSmem = typename Config::ScoreSmem;

  const AttentionBackward& problem = params.problem;
  TileSlots slots = query_slots(problem, Config::kQueries);
  int slot = blockIdx.x % slots.count(), head = blockIdx.x / slots.count();
  Sequence sequence(problem, slots.owner(slot));
  int query_tile = slot - slots.first(sequence.index);
  int rows = slots.tokens(sequence.index).size() - query_tile * Config::kQueries;
  if (query_tile < 0 || rows <= 0) return;

  QueryMajor<Config> tile(problem, sequence, head, query_tile, rows);
  ScoreGradient<Config, Pattern> gradient(problem, sequence, nullptr);
  auto walk = gradient.pattern().keys_of(query_tile, Config::kTiling);
  int steps = sequence.len_q > 0 ? walk.size() : 0;
  auto fetch = [&](int step) {
    if (step < steps) tile.fetch_keys(shared, step % Config::kStages, walk[step]);
    cp_async_fence();
  };
  tile.fetch_queries(shared);
  fetch(0);
  if (steps > 0) gradient.set_head(head);

  Tensor dq = partition_fragment_C(typename Config::QueryGradMma{},
                                   Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
  clear(dq);
  CUTE_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    int stage = step % Config::kStages;
    cp_async_wait<0>();
    __syncthreads();  // K and V are here; dS and the other stage are free
    if constexpr (Config::kStages > 1) fetch(step + 1);

    Tensor p = score_product<Config>();
    Tensor ds = score_product<Config>();
    multiply_scores<Config>(p, shared.q, shared.k[stage]);
    multiply_scores<Config>(ds, shared.dout, shared.v[stage]);
    gradient(p, ds, shared.rows, query_tile, walk[step]);
    round_to_shared(typename Config::ScoreMma{}, ds, shared.ds, typename ScoreSmem::Plain{});
    __syncthreads();  // dS is complete

    multiply_shared(typename Config::QueryGradMma{}, AlongK{}, AcrossK{}, dq, shared.ds,
                    typename ScoreSmem::Plain{}, shared.k[stage], typename KeySmem::Transposed{});
    if constexpr (Config::kStages == 1) {
      __syncthreads();  // K and V may be replaced
      fetch(step + 1);
    }
  }
  cp_async_wait<0>();
  __syncthreads();  // no one reads or fills Q any more
  tile.store(shared, dq);
}

}  // namespace tileattn::cuda
