// The forward main loop of Hopper: the copy engine (TMA) brings tiles, wgmma
// multiplies them, and warpgroups have roles.
//
// A producer warp keeps the rings of K and V filled, another that of Q. Each
// consumer warpgroup owns 64 rows of the query tile. Its products of the next key
// tile and its weights times V are both under way while it works on a softmax,
// and the warpgroups take turns at starting products, so that the softmax of one
// runs under the products of the others.
#pragma once

#include "common/sm90/tile_map.cuh"
#include "common/sm90/wgmma.cuh"
#include "config.cuh"
#include "schedule.cuh"
#include "softmax/softmax.cuh"
#include "softmax/visible_scores.cuh"

namespace tileattn::cuda {

struct ForwardMaps {
  TileMap q, k, v, out;
};

template <class Config>
struct ForwardCopies {
  using Query = TileCopy<Config::kRowsOfConsumer, Config::kDim, Config::kQueries>;
  using Key = TileCopy<Config::kKeys, Config::kDim, Config::kKeys>;
};

/// The producer warps' side; one thread of a warp does it all.
template <class Config, class Pattern>
class ProducerSm90 {
 public:
  using Shared = ForwardSm90Shared<Config>;
  using Copies = ForwardCopies<Config>;

  CUTE_DEVICE ProducerSm90(Shared& shared, const ForwardMaps& maps)
      : shared_(shared), maps_(maps) {}

  CUTE_DEVICE void bring_queries(const Sequence& sequence, int head, int query_tile) {
    CUTE_UNROLL
    for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
      int offset = consumer * Config::kRowsOfConsumer;
      int first = query_tile * Config::kQueries + offset;
      shared_.q_ring[consumer].wait_until_used_up(queries_);
      Copies::Query::load(
          maps_.q, shared_.q + offset * kBoxColumns,
          {sequence.first_q + first, sequence.first_q + sequence.len_q, head, sequence.entry},
          shared_.q_ring[consumer].full[0], TMA::CacheHintSm90::EVICT_FIRST);
    }
    queries_++;
  }

  CUTE_DEVICE void bring_keys(const AttentionProblem& problem, const Sequence& sequence, int head,
                              int query_tile) {
    int key_head = head / (problem.heads_q / problem.heads_kv);
    auto visits =
        Pattern::make(problem.pattern, {sequence.index, head, sequence.len_q, sequence.len_k})
            .keys_of(query_tile, Config::kTiling);
    auto bring = [&](const TileMap& map, auto* stages, auto& ring, auto place, int key_tile) {
      ring.wait_until_used_up(place);
      Copies::Key::load(map, stages[place.stage()],
                        {sequence.first_k + key_tile * Config::kKeys,
                         sequence.first_k + sequence.len_k, key_head, sequence.entry},
                        ring.full[place.stage()], TMA::CacheHintSm90::EVICT_LAST);
    };
    // In the order in which the consumers wait for them: K K V K V ... V.
    Visit<int> visit, next;
    bool more = visits.next(next);
    if (more) bring(maps_.k, shared_.k, shared_.k_ring, keys_++, next.tile);
    CUTE_NO_UNROLL
    while (more) {
      visit = next;
      more = visits.next(next);
      if (more) bring(maps_.k, shared_.k, shared_.k_ring, keys_++, next.tile);
      bring(maps_.v, shared_.v, shared_.v_ring, values_++, visit.tile);
    }
  }

 private:
  Shared& shared_;
  const ForwardMaps& maps_;
  RingPlace<1> queries_;  // each consumer's stage is filled once for a query tile
  RingPlace<Config::kStages> keys_, values_;
};

/// A consumer warpgroup's side.
template <class Config, class Pattern>
class ConsumerSm90 {
 public:
  using Element = typename Config::Element;
  using ScoreMma = typename Config::ScoreMma;
  using OutMma = typename Config::OutMma;
  using Shared = ForwardSm90Shared<Config>;
  using Place = RingPlace<Config::kStages>;

  CUTE_DEVICE ConsumerSm90(Shared& shared, int warpgroup) : shared_(shared), warpgroup_(warpgroup) {
    if (Config::kTakesTurns && warpgroup_ == Config::kConsumers - 1) pass_turn();
  }

  CUTE_DEVICE static auto make_out() {
    return partition_fragment_C(OutMma{}, Shape<Int<Config::kQueries>, Int<Config::kDim>>{});
  }

  /// out becomes the sum of the weighted values of the key tiles visited.
  template <class Scores, class Cursor, class Out, class Softmax>
  CUTE_DEVICE void run(const Scores& visible, Cursor visits, Out& out, Softmax& softmax) {
    clear(out);
    shared_.q_ring[warpgroup_].wait_until_full(queries_++);
    const int count = visits.size();
    if (count == 0) return;
    // The places of the first tile; those of V are the same, only filled later.
    const Place first = tiles_;
    tiles_.count += count;

    auto score_mma = ScoreMma{}.get_slice(warpgroup_ * 128);
    auto out_mma = OutMma{}.get_slice(warpgroup_ * 128);
    Tensor q = score_mma.partition_fragment_A(
        make_tensor(make_smem_ptr(shared_.q), typename Config::QuerySmem{}));
    Tensor k = score_mma.partition_fragment_B(
        make_tensor(make_smem_ptr(shared_.k[0]), typename Config::KeySmem{}));
    Tensor v = out_mma.partition_fragment_B(
        make_tensor(make_smem_ptr(shared_.v[0]), typename Config::ValueSmem{}));
    Tensor scores =
        partition_fragment_C(ScoreMma{}, Shape<Int<Config::kQueries>, Int<Config::kKeys>>{});
    // A thread's elements of a product follow each other as those of an operand do.
    Tensor weights = make_tensor<Element>(
        partition_shape_A(OutMma{}, Shape<Int<Config::kQueries>, Int<Config::kKeys>>{}));

    auto weigh_next = [&] {
      Visit<int> visit;
      visits.next(visit);
      float factor = visible.modify(by_rows(scores), visit);
      return softmax.weigh(by_rows(scores), factor);
    };
    // When the values of all tiles before `next` are in out: makes it ready for those of `next`.
    auto finish_values = [&](Place next, const auto& rescale) {
      wait_for_product<0>(out);
      if (next.count != first.count) use_up(shared_.v_ring, {next.count - 1});
      softmax.rescale(by_rows(out), rescale);
      round_pairs(scores, weights);
    };

    shared_.k_ring.wait_until_full(first);
    start_product<false>(ScoreMma{}, q, k(_, _, _, first.stage()), scores);
    wait_for_product<0>(scores);
    use_up(shared_.k_ring, first);
    auto rescale = weigh_next();

    // The wait for the values of one tile stands at the head of the loop, not behind the softmax
    // of the next tile at its foot: inside a block of code the compiler would move it ahead.
    CUTE_NO_UNROLL
    for (int n = 1; n < count; ++n) {
      Place last{first.count + n - 1}, place{first.count + n};
      shared_.k_ring.wait_until_full(place);
      finish_values(last, rescale);
      if (Config::kTakesTurns) wait_for_turn();
      start_product<false>(ScoreMma{}, q, k(_, _, _, place.stage()), scores);
      shared_.v_ring.wait_until_full(last);
      start_product<true>(OutMma{}, weights, v(_, _, _, last.stage()), out);
      if (Config::kTakesTurns) pass_turn();

      wait_for_product<1>(scores);
      use_up(shared_.k_ring, place);
      rescale = weigh_next();
    }

    Place last{first.count + count - 1};
    shared_.v_ring.wait_until_full(last);
    finish_values(last, rescale);
    start_product<true>(OutMma{}, weights, v(_, _, _, last.stage()), out);
    wait_for_product<0>(out);
    use_up(shared_.v_ring, last);
  }

  /// Writes this warpgroup's rows of out, by way of the shared memory of Q.
  template <class Out>
  CUTE_DEVICE void store(const ForwardMaps& maps, const Sequence& sequence, int head,
                         int query_tile, const Out& out) {
    int offset = warpgroup_ * Config::kRowsOfConsumer;
    int first = query_tile * Config::kQueries + offset;
    sync_warpgroup();  // Q is used up
    round_to_shared<Element>(OutMma{}, out, shared_.q,
                             typename SwizzledSmem<Config::kQueries, Config::kDim>::Plain{});
    fence_async_shared();
    sync_warpgroup();
    if (threadIdx.x % 128 == 0) {
      ForwardCopies<Config>::Query::store(
          maps.out, shared_.q + offset * kBoxColumns,
          {sequence.first_q + first, sequence.first_q + sequence.len_q, head, sequence.entry});
      tma_store_arrive();
      tma_store_wait<0>();
      shared_.q_ring[warpgroup_].used_up[0].arrive();
    }
  }

 private:
  CUTE_DEVICE static void use_up(Ring<Config::kStages>& ring, Place place) {
    if (threadIdx.x % 32 == 0) ring.used_up[place.stage()].arrive();
  }

  CUTE_DEVICE void sync_warpgroup() const { named_barrier_sync(kStoreBarrier + warpgroup_, 128); }
  CUTE_DEVICE void wait_for_turn() const { named_barrier_sync(kTurnBarrier + warpgroup_, 256); }
  CUTE_DEVICE void pass_turn() const {
    int next = warpgroup_ + 1 == Config::kConsumers ? 0 : warpgroup_ + 1;
    named_barrier_arrive(kTurnBarrier + next, 256);
  }

  static constexpr int kTurnBarrier = 1;
  static constexpr int kStoreBarrier = kTurnBarrier + Config::kConsumers;

  Shared& shared_;
  int warpgroup_;
  RingPlace<1> queries_;
  Place tiles_;
};

}  // namespace tileattn::cuda
