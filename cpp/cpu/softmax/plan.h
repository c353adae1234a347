// What the instruction-set independent part (dispatch.cpp) hands to the kernels:
// tile sizes, how the work is cut into tasks, and buffers.
#pragma once

#include <cstdint>

#include "cpu/common/blocks.h"
#include "tileattn/attention.h"
#include "tileattn/pattern/catalogue.h"
#include "tileattn/pattern/neighborhood.h"

namespace tileattn::cpu {

// Few queries of a key head cost less where its keys lie than they gain from packed ones.
constexpr int kFewQueries = 8;
// Keys and values of so many tokens are read together, of all heads; while that is done, those two
// steps ahead are asked for. More at once cost up to half of the bandwidth of the memory.
constexpr int kFewTokens = 8;

/// How a grid of tokens is cut. Boxes of up to kTile.queries queries; boxes of up to kPanel
/// keys, and boxes of up to kPanelsPerTile of those, which are the key tiles.
struct GridCut {
  int query_box[3];
  int panel_box[3];
  int panels_per_tile[3];
};

/// One sequence of the batch, or of the packed tokens, or one part of a grid.
struct Sequence {
  int index;           // among the sequences
  int batch;           // its batch entry in the tensors; 0 when packed
  int q_begin, len_q;  // first token and number of tokens, in that entry
  int k_begin, len_k;
  std::int64_t row;         // its first row in lse and delta, in units of heads_q
  std::int64_t packed_key;  // its first key in the packed K and V, in units of heads_kv
  std::int64_t dq_row;      // its first row in a chunk of dq
  int query_tiles, key_tiles, panels;
  int extra_tiles = 0;           // the first key tiles, and
  int extra_panels = 0;          // the first panels, are those of the extra keys
  const GridCut* cut = nullptr;  // of a grid, and
  DilationGroup<3> part{};       // the part of it
  TILEATTN_HOST_DEVICE int padded_keys() const { return panels * kPanel; }
};

/// A tile of one (sequence, head); what `head` and `tile` count is the task's matter.
struct Task {
  const Sequence* sequence;
  int head;
  int tile;
};

/// Memory for keys and values of one (sequence, key head), as the forward reads them; kernels of
/// narrower operands use half of it.
struct PackedHead {
  float* k;  // [padded_keys][dim]
  float* v;  // [padded_keys][padded dim_v]
};

/// dq in fp32 of some heads and rows, several times over: each task that adds to the same ones has
/// its own.
struct DqChunks {
  float* data;  // [chunks][heads][rows][padded dim]
  int heads, first_head;
  std::int64_t rows, first_row;
};

struct BackwardPlan {
  const AttentionBackward* problem;
  int chunks;  // key tiles are dealt to this many tasks per (sequence, key head)
  int parts;   // sequences of a batch entry, if it is a grid
  DqChunks dq;
};

/// Kernels of one pattern. `scratch` is aligned to 64 bytes and holds as many floats as asked
/// for below.
struct PatternKernels {
  // head: key head, tile: panel
  void (*pack_panel)(const AttentionForward&, Task, PackedHead);
  // tile: query tile
  void (*forward)(const AttentionForward&, Task, PackedHead, float* scratch);
  // All that belongs to a key head. `next` is probably the same thread's next task.
  void (*forward_head)(const AttentionForward&, Task, Task next, PackedHead, float* scratch);
  // Few queries, of `heads` key heads from `head` on
  void (*forward_few)(const AttentionForward&, Task, int heads, float* scratch);
  void (*prepare_queries)(const BackwardPlan&, Task);           // tile: query tile
  void (*backward)(const BackwardPlan&, Task, float* scratch);  // head: key head, tile: chunk
  // The extra keys of a batch entry. sequence: its first, head: key head
  void (*backward_extra)(const BackwardPlan&, Task, float* scratch);
  void (*store_dq)(const BackwardPlan&, Task);  // tile: query tile
  // All that belongs to a key head, if there are neither chunks nor extra keys
  void (*backward_head)(const BackwardPlan&, Task, float* scratch);
};

/// Kernels of one instruction set.
struct Variant {
  PatternKernels in_sequences[SequencePatterns::kSize];  // by PatternKind
  PatternKernels on_grids;
};

/// Elements of the largest of the problem's results.
TILEATTN_HOST_DEVICE std::int64_t result_size(const AttentionProblem& p) {
  return std::int64_t{p.cu_seqlens_q ? 1 : p.batch} * p.len_q * p.heads_q * imax(p.dim, p.dim_v);
}

/// Floats of one PackedHead with this many padded keys.
constexpr std::int64_t packed_size(const AttentionProblem& p, std::int64_t keys) {
  return keys * (p.dim + round_up(p.dim_v, kColumnGranule));
}

constexpr std::int64_t forward_scratch(const AttentionProblem& p) {
  return kTile.queries * (p.dim + kTile.keys + round_up(p.dim_v, kColumnGranule));
}

constexpr std::int64_t few_scratch(const AttentionProblem& p) {
  const std::int64_t dim = round_up(p.dim, kColumnGranule);
  const std::int64_t dim_v = round_up(p.dim_v, kColumnGranule);
  return kTile.queries * (dim + kTile.keys + dim_v) + (kFewTokens + 1) * (dim + dim_v);
}

constexpr std::int64_t backward_scratch(const AttentionProblem& p) {
  std::int64_t dims = round_up(p.dim, kColumnGranule) + round_up(p.dim_v, kColumnGranule);
  std::int64_t keys = kTile.keys * (3 * dims), queries = kTile.queries * dims;
  // Elements of two numbers have two layouts, which take as much as one of floats; but scores
  // are floats first.
  return keys + queries + kTile.queries * kTile.keys * 5 / 2;
}

}  // namespace tileattn::cpu
