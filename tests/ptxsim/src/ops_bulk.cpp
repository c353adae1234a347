// cp.async.bulk, cp.async.bulk.tensor and their reductions.
#include <array>

#include "async_issue.h"
#include "atomic.h"
#include "decode.h"
#include "lanes.h"
#include "machine.h"
#include "mbarrier.h"
#include "tma.h"

namespace ptxsim {

namespace {

enum class Direction : uint8_t { kGlobalToShared, kSharedToGlobal, kSharedToShared };

struct Bulk {
  Direction direction;
  bool tensor = false, multicast = false;
  AtomicOp reduction = AtomicOp::kNone;
  Type type = Type::kNone;
  unsigned rank = 0;
  struct Address {
    Operand base;
    int64_t offset;
    uint8_t size;
  };
  Address to, from, barrier;  // a tensor map is the address of its side
  std::vector<Operand> coordinates;
  Operand bytes, cta_mask;
};

Bulk::Address decode_address(Decoder& d, const Expr& e) {
  d.in.imm = 0;
  Operand base = d.address(e);
  return {base, d.in.imm, d.in.address_size};
}
uint64_t value_of(Warp& w, const Bulk::Address& a, unsigned lane) {
  uint64_t v = w.get(a.base, a.size, lane) + static_cast<uint64_t>(a.offset);
  return a.size == 4 ? static_cast<uint32_t>(v) : v;
}

struct SharedPlace {
  Cta* cta;
  uint32_t offset;
};
SharedPlace place_of(Warp& w, uint64_t address) {
  uint32_t a = static_cast<uint32_t>(address), rank = a >> kClusterRankShift;
  return {rank ? &w.cluster().cta(rank - 1) : &w.cta(), a & ((1u << kClusterRankShift) - 1)};
}
Mbarrier barrier_at(Cta& cta, uint32_t offset) {
  if (offset % 8) throw SimError("mbarrier address is not aligned");
  return Mbarrier(cta.shared.write(offset, 8), RaceDetector::mbarrier_key(cta.rank, offset));
}

void check_global(uint64_t address, uint32_t bytes) {
  auto range = global_memory().range_of(address);
  if (address < range.begin || address + bytes > range.end)
    throw SimError("bulk copy outside the known global memory: " +
                   global_memory().describe(address));
}

void combine(uint8_t* to, const uint8_t* from, uint32_t bytes, AtomicOp op, Type type) {
  if (op == AtomicOp::kNone) {
    std::memcpy(to, from, bytes);
    return;
  }
  const unsigned n = size_of(type);
  for (uint32_t i = 0; i < bytes; i += n) {
    uint64_t old = 0, value = 0;
    std::memcpy(&old, to + i, n);
    std::memcpy(&value, from + i, n);
    value = apply_atomic(op, type, old, value);
    std::memcpy(to + i, &value, n);
  }
}

// What a copy moves: the box of a tensor map at some coordinates, or contiguous bytes.
struct Extent {
  const TensorMap* map;
  uint32_t bytes;
  Coordinates at{};
};
Extent extent_of(Warp& w, const Bulk& b, uint64_t global, unsigned lane) {
  Extent e{b.tensor ? &tensor_map_at(global) : nullptr, 0};
  e.bytes = e.map ? box_bytes(*e.map) : w.at<uint32_t>(b.bytes)[lane];
  if (e.map && e.map->rank != b.rank)
    throw SimError("tensor map of rank " + std::to_string(e.map->rank) + " used with " +
                   std::to_string(b.rank) + " coordinates");
  for (size_t k = 0; k < b.coordinates.size(); ++k) e.at[k] = w.at<int32_t>(b.coordinates[k])[lane];
  if (w.cluster().stats) w.cluster().stats->tma_bytes += e.bytes;
  return e;
}

void bulk_to_shared(Warp& w, const Bulk& b, unsigned lane) {
  Cluster* cluster = &w.cluster();
  SharedPlace to = place_of(w, value_of(w, b.to, lane)),
              barrier = place_of(w, value_of(w, b.barrier, lane));
  const uint64_t from = value_of(w, b.from, lane);
  const auto [map, bytes, at] = extent_of(w, b, from, lane);
  if (!map && (bytes % 16 || from % 16 || to.offset % 16))
    throw SimError("bulk copy: size and addresses must be multiples of 16");
  uint32_t targets = b.multicast ? w.at<uint16_t>(b.cta_mask)[lane] : 1u << to.cta->rank;
  const SharedPlace source =
      b.direction == Direction::kSharedToShared ? place_of(w, from) : SharedPlace{};
  // With multicast every target's own barrier at the same offset is signalled.
  auto signalled = [=, multicast = b.multicast](unsigned rank) -> Cta& {
    return multicast ? cluster->cta(rank) : *barrier.cta;
  };
  std::array<uint64_t, 32> tickets{};
  for (unsigned rank = 0; rank < 32; ++rank) {
    if (!(targets >> rank & 1)) continue;
    cluster->cta(rank).shared.check_range(to.offset, bytes);
    const uint64_t key = RaceDetector::mbarrier_key(signalled(rank).rank, barrier.offset);
    if (w.races())
      tickets[rank] =
          w.races()->load(w.index_in_cluster(), key, {rank, to.offset, bytes}, w.inst().line);
  }
  const Bulk* bulk = &b;
  cluster->add_transfer(issued_here(w, static_cast<int>(lane), [=] {
    for (unsigned rank = 0; rank < 32; ++rank) {
      if (!(targets >> rank & 1)) continue;
      Cta& cta = cluster->cta(rank);
      if (map) {
        load_tile(*map, at, cta.shared, to.offset);
      } else if (bulk->direction == Direction::kSharedToShared) {
        combine(cta.shared.write(to.offset, bytes), source.cta->shared.read(source.offset, bytes),
                bytes, bulk->reduction, bulk->type);
      } else {
        check_global(from, bytes);
        std::memcpy(cta.shared.write(to.offset, bytes), reinterpret_cast<const void*>(from), bytes);
      }
      const uint64_t key = RaceDetector::mbarrier_key(signalled(rank).rank, barrier.offset);
      if (cluster->races) cluster->races->release_load(key, tickets[rank]);
      barrier_at(signalled(rank), barrier.offset)
          .complete_tx(*cluster, static_cast<int32_t>(bytes));
    }
  }));
}

void bulk_to_global(Warp& w, const Bulk& b, unsigned lane) {
  SharedPlace from = place_of(w, value_of(w, b.from, lane));
  const uint64_t to = value_of(w, b.to, lane);
  const auto [map, bytes, at] = extent_of(w, b, to, lane);
  const Bulk* bulk = &b;
  from.cta->shared.check_range(from.offset, bytes);
  w.async_access(Unit::kBulkStore, w.bulk[lane].issued() + 1, {from.cta->rank, from.offset, bytes},
                 false);
  auto store = issued_here(w, static_cast<int>(lane), [=] {
    if (map) {
      store_tile(*map, at, from.cta->shared, from.offset, bulk->reduction);
      return;
    }
    check_global(to, bytes);
    combine(reinterpret_cast<uint8_t*>(to), from.cta->shared.read(from.offset, bytes), bytes,
            bulk->reduction, bulk->type);
  });
  w.bulk[lane].add(std::move(store), options().late.store);
}

void bulk_copy(Warp& w, const Inst& in, uint32_t mask) {
  const Bulk& b = *static_cast<const Bulk*>(in.extra.get());
  for_lanes(mask, [&](unsigned i) {
    if (b.direction == Direction::kSharedToGlobal) bulk_to_global(w, b, i);
    else bulk_to_shared(w, b, i);
  });
}

}  // namespace

void decode_bulk(Decoder& d) {
  if (d.has("commit_group")) {
    d.in.run = [](Warp& w, const Inst&, uint32_t mask) {
      for_lanes(mask, [&](unsigned i) { w.bulk[i].commit(); });
    };
    return;
  }
  if (d.has("wait_group")) {
    d.has("read");
    d.in.imm = d.immediate(d.arg(0));
    d.in.run = [](Warp& w, const Inst& in, uint32_t mask) {
      for_lanes(mask, [&](unsigned i) {
        w.waited_for(Unit::kBulkStore, w.bulk[i].wait_pending(static_cast<unsigned>(in.imm)));
      });
    };
    return;
  }
  if (d.has("prefetch")) {
    while (!d.all_consumed()) d.take_rest();
    d.in.run = [](Warp&, const Inst&, uint32_t) {};
    return;
  }
  Bulk b{};
  auto contains = [&](std::string_view part) {
    return d.st.opcode.find(part) != std::string_view::npos;
  };
  if (contains(".shared::cluster.global") || contains(".shared::cta.global"))
    b.direction = Direction::kGlobalToShared;
  else if (contains(".global.shared::cta")) b.direction = Direction::kSharedToGlobal;
  else if (contains(".shared::cluster.shared::cta")) b.direction = Direction::kSharedToShared;
  else return;
  d.ignore({"global", "shared::cta", "shared::cluster", "tile", "bulk_group",
            "mbarrier::complete_tx::bytes"});
  d.ignore_memory_modifiers();
  b.tensor = d.has("tensor");
  b.multicast = d.has("multicast::cluster");
  if (b.tensor)
    for (unsigned r = 1; r <= 5; ++r)
      if (d.has(std::to_string(r) + "d")) b.rank = r;
  for (std::string_view name : {"add", "min", "max", "inc", "dec", "and", "or", "xor"})
    if (d.has(name)) b.reduction = parse_atomic_op(name);
  b.type = d.take_type();
  d.has("noftz");
  bool is_store = b.direction == Direction::kSharedToGlobal;
  unsigned at = 0;
  const Expr &to = d.arg(at++), &from = d.arg(at++);
  d.in.space = Space::kGeneric;
  b.to = decode_address(d, to);
  b.from = decode_address(d, from);
  if (b.tensor) {
    const Expr& map = is_store ? to : from;
    if (map.items.size() != 2) d.fail("expected coordinates");
    b.coordinates = d.sources(map.items[1], 4);
    if (b.coordinates.size() != b.rank) d.fail("wrong number of coordinates");
  } else {
    b.bytes = d.source(at++, 4);
  }
  if (!is_store) b.barrier = decode_address(d, d.arg(at++));
  if (b.multicast) b.cta_mask = d.source(at++, 2);
  d.in.extra = std::make_shared<Bulk>(b);
  d.in.run = bulk_copy;
}

}  // namespace ptxsim
