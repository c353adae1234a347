// The forward main loop for sm_80-class hardware: cp.async, ldmatrix, mma.sync.
//
// What is this architecture's own is here (loading, matrix instructions,
// synchronisation); pattern, scores, normaliser and epilogue are shared parts.
#pragma once

#include "common/sm80/copy.cuh"
#include "config.cuh"
#include "score_product.cuh"
#include "softmax/softmax.cuh"
#include "softmax/visible_scores.cuh"

namespace tileattn::cuda {

template <class Config, class Pattern>
struct alignas(128) ForwardShared : VisibleBits<Config, Pattern> {
  using Element = typename Config::Element;
  Element q[Config::kQueries * Config::kDim];
  Element k[Config::kStages][Config::kKeys * Config::kDim];
  Element v[Config::kStages][Config::kKeys * Config::kDim];
};

template <class Config, class Pattern>
class MainloopSm80 {
 public:
  using Element = typename Config::Element;
  using Mma = typename Config::ScoreMma;
  using QuerySmem = typename Config::QuerySmem;
  using KeySmem = typename Config::KeySmem;
  using Shared = ForwardShared<Config, Pattern>;

  CUTE_DEVICE MainloopSm80(const AttentionForward& problem, const Tiles<Config, Pattern>& tiles,
                           int head, Shared& shared)
      : problem_(problem), tiles_(tiles), scores_(problem, tiles, head, &shared), head_(head) {}

  /// What the scores are that the softmax is given.
  CUTE_DEVICE bool natural() const { return scores_.natural(); }

  template <class Cursor, class Out, class Softmax>
  CUTE_DEVICE void run(Shared& shared, Cursor visits, Out& out, Softmax& softmax) const {
    using KeyVisit = Visit<typename Cursor::Tile>;
    constexpr int kStages = Config::kStages;
    // Groups in flight, oldest first: K V K V ... K; each iteration adds a V and a K.
    constexpr int kInFlight = 2 * kStages - 2;
    int left = visits.size();
    // The visit at work and those after it, whose keys are under way.
    KeyVisit ahead[kStages];
    // `distance`: of the visit from the one at work.
    auto fetch_k = [&](int stage, int distance, KeyVisit& visit) {
      if (distance < left) {
        visits.next(visit);
        fetch(shared.k[stage], problem_.k, problem_.extra_k, visit.tile, problem_.dim);
      }
      cp_async_fence();
    };
    auto fetch_v = [&](int stage, int distance, const KeyVisit& visit) {
      if (distance < left)
        fetch(shared.v[stage], problem_.v, problem_.extra_v, visit.tile, problem_.dim_v);
      cp_async_fence();
    };
    fetch_q(shared);
    fetch_k(0, 0, ahead[0]);
    CUTE_UNROLL
    for (int n = 1; n < kStages; ++n) {
      fetch_v(n - 1, n - 1, ahead[n - 1]);
      fetch_k(n, n, ahead[n]);
    }
    if (left > 0) scores_.prepare(ahead[0]);

    int stage = 0;
    CUTE_NO_UNROLL
    for (; left > 0; --left) {
      cp_async_wait<kInFlight>();
      __syncthreads();  // this K is here; the V of the last iteration is used up
      fetch_v((stage + kStages - 1) % kStages, kStages - 1, ahead[kStages - 1]);

      Tensor weights =
          partition_fragment_C(Mma{}, Shape<Int<Config::kQueries>, Int<Config::kKeys>>{});
      clear(weights);
      multiply_scores<Config>(weights, shared.q, shared.k[stage]);
      float factor = scores_.modify(by_rows(weights), ahead[0]);
      softmax.absorb(by_rows(weights), by_rows(out), factor);

      cp_async_wait<kInFlight>();
      __syncthreads();  // this V is here; this K is used up
      CUTE_UNROLL
      for (int n = 1; n < kStages; ++n) ahead[n - 1] = ahead[n];
      fetch_k(stage, kStages, ahead[kStages - 1]);
      if (left > 1) scores_.prepare(ahead[0]);
      multiply_registers(Mma{}, AcrossK{}, out, as_operand_a<Element>(weights), shared.v[stage],
                         typename KeySmem::Transposed{});
      stage = (stage + 1) % kStages;
    }
    cp_async_wait<0>();
    __syncthreads();  // shared memory is free
  }

  /// Writes the tile of out, by way of the shared memory of Q.
  template <class Out>
  CUTE_DEVICE void store(Shared& shared, const Out& out) const {
    round_to_shared<Element>(Mma{}, out, shared.q, typename QuerySmem::Plain{});
    __syncthreads();
    store_rows<Config>(shared.q, typename QuerySmem::Plain{},
                       tiles_.template query_rows<Element>(problem_.out, tiles_.own(), head_),
                       problem_.dim_v);
  }

 private:
  CUTE_DEVICE void fetch_q(Shared& shared) const {
    load_rows<Config>(shared.q, typename QuerySmem::Plain{},
                      tiles_.template query_rows<const Element>(problem_.q, tiles_.own(), head_),
                      problem_.dim);
  }

  template <class Tile>
  CUTE_DEVICE void fetch(Element* to, const ConstTensorRef& from, const ConstTensorRef& extra,
                         const Tile& key_tile, int dims) const {
    int head = head_ / (problem_.heads_q / problem_.heads_kv);
    load_rows<Config>(to, typename KeySmem::Plain{},
                      tiles_.template key_rows<const Element>(from, extra, key_tile, head), dims);
  }

  const AttentionForward& problem_;
  const Tiles<Config, Pattern>& tiles_;
  VisibleScores<Config, Pattern> scores_;
  int head_;
};

}  // namespace tileattn::cuda
