// Entry points of linear attention: which walks a call is made of, and what they hand on.
//
// Where (sequence, head) pairs are few, their tokens are cut into segments: first each segment's
// own state (accumulate), then the states before each (pass), then all segments at once (walk).
// A call that is not causal goes the same way: every query reads the last state.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernel_table.h"
#include "softmax_attention/device.h"
#include "workspace.h"

namespace tileattn::cuda {
namespace {

void check(const LinearAttentionProblem& p) {
  for (int dim : {p.dim, p.dim_v})
    if (dim <= 0 || dim % 8 != 0)
      throw std::invalid_argument("tileattn: head dims must be multiples of 8");
  if (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0)
    throw std::invalid_argument("tileattn: heads_kv must divide heads_q");
  if (!p.causal && p.log_decay.data)
    throw std::invalid_argument("tileattn: log_decay needs causal attention");
  if (p.feature_map != FeatureMap::kNone)
    throw std::invalid_argument("tileattn: the CUDA kernels have no feature maps");
}

/// The kernels for queries and keys of `dim` channels.
const LinearKernels& find(DType dtype, int dim) {
  const Device device = Device::current();
  const LinearKernels* best = nullptr;
  LinearRows rows = linear_rows();
  for (auto* row = rows.begin; row != rows.end; ++row)
    if (row->dtype == dtype && row->dim >= dim && device.runs(Architecture::kSm80, row->budget) &&
        (!best || row->dim < best->dim))
      best = row;
  if (!best)
    throw std::invalid_argument(
        "tileattn: no CUDA kernel of linear attention was built for head "
        "dim " +
        std::to_string(dim) + " and this dtype and device");
  return *best;
}

int slices_of(int dim) { return (dim + kValues - 1) / kValues; }

LinearShape shape_of(const LinearAttentionProblem& p) {
  LinearShape shape;
  shape.batch = p.batch;
  shape.heads = p.heads_q;
  shape.dim = p.dim;
  shape.dim_v = p.dim_v;
  shape.len = p.len;
  shape.cu_seqlens = p.cu_seqlens;
  shape.decay = p.log_decay;
  shape.segments =
      choose_segments(std::int64_t{p.batch} * p.heads_q * slices_of(p.dim_v),
                      (p.len + kChunk - 1) / kChunk, Device::current().multiprocessors);
  return shape;
}

Operand query_operand(const LinearAttentionProblem& p) { return {p.q, p.dim, 1}; }
Operand key_operand(const LinearAttentionProblem& p) {
  return {p.k, p.dim, p.heads_q / p.heads_kv};
}
Operand value_operand(const LinearAttentionProblem& p) {
  return {p.v, p.dim_v, p.heads_q / p.heads_kv};
}

/// The states between segments of one walk, in the workspace.
struct PassedStates {
  StateSlots slots;
  float* decays = nullptr;

  /// No memory where each (sequence, head) is walked in one go.
  PassedStates(const LinearAttentionProblem& p, const LinearShape& shape, Workspace& workspace) {
    if (p.causal && shape.segments == 1) return;
    slots.slots = shape.segments + 1;
    std::int64_t states = std::int64_t{shape.batch} * shape.heads;
    decays = workspace.take(states * shape.segments);
    slots.s = workspace.take(states * slots.slots * shape.dim * shape.dim_v);
    if (p.normalize) slots.z = workspace.take(states * slots.slots * shape.dim);
  }

  explicit operator bool() const { return slots.s; }

  void compute(const LinearKernels& kernels, const LinearShape& shape, const Operand& keys,
               const Operand& values, const TokenNumbers& numbers, bool backwards, bool exact,
               ConstStateRef first, StateRef last, void* stream) const {
    AccumulateParams own;
    own.shape = shape;
    own.keys = keys;
    own.values = values;
    own.extra = slots.z ? Extra::kValues : Extra::kNone;
    own.numbers = numbers;
    own.own = slots;
    own.decays = decays;
    own.exact = exact;
    kernels.accumulate(own, backwards, stream);
    kernels.pass_states({shape, backwards, first, slots, decays, last}, stream);
  }
};

struct ForwardPlan {
  LinearShape shape;
  Workspace workspace;
  PassedStates states;

  ForwardPlan(const LinearAttentionProblem& p, void* memory)
      : shape(shape_of(p)), workspace(memory), states(p, shape, workspace) {}
};

struct BackwardPlan {
  LinearShape shape;
  Workspace workspace;
  PassedStates states, dstates;
  float* extra = nullptr;
  float* parts = nullptr;  // of the query heads that share a key head: first of dk, then of dv
  float *read = nullptr, *given = nullptr, *pairs = nullptr, *products = nullptr;

  BackwardPlan(const LinearAttentionBackward& p, void* memory)
      : shape(shape_of(p)),
        workspace(memory),
        states(p, shape, workspace),
        dstates(p, shape, workspace) {
    const std::int64_t rows = shape.rows(), slices = slices_of(p.dim);
    if (p.normalize) extra = workspace.take(rows);
    if (p.heads_q != p.heads_kv) parts = workspace.take(rows * std::max(p.dim, p.dim_v));
    if (!p.dlog_decay) return;
    pairs = workspace.take(rows);
    read = workspace.take(slices * rows);
    given = workspace.take(slices * rows);
    products = workspace.take(slices * p.batch * p.heads_q * shape.segments);
  }
};

/// A walk that continues the states, or starts from `first` if there are no segments.
WalkParams walk_of(const LinearAttentionProblem& p, const LinearShape& shape,
                   const Operand& queries, const Operand& keys, const Operand& values,
                   const TokenNumbers& numbers, const PassedStates& states, ConstStateRef first) {
  WalkParams walk;
  walk.shape = shape;
  walk.queries = queries;
  walk.keys = keys;
  walk.values = values;
  walk.numbers = numbers;
  walk.causal = p.causal;
  walk.first = first;
  walk.start = states.slots;
  return walk;
}

bool is_empty(const LinearAttentionProblem& p) { return p.batch == 0 || p.heads_q == 0; }

}  // namespace

std::size_t linear_attention_forward_workspace(const LinearAttentionForward& problem) {
  return is_empty(problem) ? 0 : ForwardPlan(problem, nullptr).workspace.bytes();
}

void linear_attention_forward(const LinearAttentionForward& p, void* workspace, void* stream) {
  if (is_empty(p)) return;
  check(p);
  const LinearKernels& kernels = find(p.dtype, p.dim);
  const ForwardPlan plan(p, workspace);
  const Operand q = query_operand(p), k = key_operand(p), v = value_operand(p);
  if (plan.states)
    plan.states.compute(kernels, plan.shape, k, v, {}, false, false, p.initial_state, p.final_state,
                        stream);
  TokenNumbers scaled;
  scaled.scale = p.scale;
  scaled.of_queries = true;
  WalkParams walk = walk_of(p, plan.shape, q, k, v, scaled, plan.states, p.initial_state);
  walk.extra = p.normalize ? Extra::kValues : Extra::kNone;
  walk.out = p.out;
  walk.denominator = p.denominator;
  if (!plan.states) walk.last = p.final_state;
  kernels.walk(walk, false, stream);
}

std::size_t segment_state_workspace(const LinearAttentionState& problem) {
  if (is_empty(problem)) return 0;
  LinearAttentionState passed = problem;
  passed.causal = false;  // without a walk, the states are always passed
  return ForwardPlan(passed, nullptr).workspace.bytes();
}

void segment_state(const LinearAttentionState& p, void* workspace, void* stream) {
  if (is_empty(p)) return;
  check(p);
  LinearAttentionState passed = p;
  passed.causal = false;
  const ForwardPlan plan(passed, workspace);
  plan.states.compute(find(p.dtype, p.dim), plan.shape, key_operand(p), value_operand(p), {}, false,
                      false, p.initial_state, p.final_state, stream);
}

std::size_t linear_attention_backward_workspace(const LinearAttentionBackward& problem) {
  return is_empty(problem) ? 0 : BackwardPlan(problem, nullptr).workspace.bytes();
}

void linear_attention_backward(const LinearAttentionBackward& p, void* workspace, void* stream) {
  if (is_empty(p)) return;
  check(p);
  const LinearKernels &by_dim = find(p.dtype, p.dim), &by_dim_v = find(p.dtype, p.dim_v);
  const BackwardPlan plan(p, workspace);
  const Operand q = query_operand(p), k = key_operand(p), v = value_operand(p);
  const Operand dout{p.dout, p.dim_v, 1};
  const int group = p.heads_q / p.heads_kv;
  if (p.normalize) by_dim.extra({plan.shape, p.out, p.dout, plan.extra}, stream);
  TokenNumbers of_queries;
  of_queries.divisors = p.normalize ? p.denominator : nullptr;
  of_queries.extra = plan.extra;
  of_queries.scale = p.scale;
  of_queries.of_queries = true;
  TokenNumbers of_keys = of_queries;
  of_keys.of_queries = false;

  const bool exact = p.dlog_decay;
  if (plan.states)
    plan.states.compute(by_dim, plan.shape, k, v, {}, false, exact, p.initial_state, {}, stream);
  if (plan.dstates)
    plan.dstates.compute(by_dim, plan.shape, q, dout, of_keys, true, exact, p.dfinal_state,
                         p.dinitial_state, stream);

  WalkParams dq = walk_of(p, plan.shape, dout, v, k, of_queries, plan.states, p.initial_state);
  dq.transposed = true;
  dq.extra = p.normalize ? Extra::kKeys : Extra::kNone;
  dq.out = p.dq;
  if (p.dlog_decay) {
    dq.exact = exact;
    dq.dot_with = q;
    dq.dots = plan.read;
    dq.product_first = p.dfinal_state;
    dq.product_start = plan.dstates.slots;
    dq.products = plan.products;
  }
  by_dim_v.walk(dq, false, stream);

  // Of a gradient that several query heads add to, each writes its part.
  auto walk_back = [&](const LinearKernels& kernels, WalkParams walk, TensorRef to) {
    walk.out = to;
    walk.partial = plan.parts;
    kernels.walk(walk, true, stream);
    if (plan.parts) kernels.sum_heads({plan.shape, plan.parts, to, walk.values.dim, group}, stream);
  };
  WalkParams dk = walk_of(p, plan.shape, v, dout, q, of_keys, plan.dstates, p.dfinal_state);
  dk.transposed = true;
  dk.extra = dq.extra;
  if (p.dlog_decay) {
    dk.exact = exact;
    dk.dot_with = k;
    dk.dots = plan.given;
  }
  if (!plan.dstates) dk.last = p.dinitial_state;
  walk_back(by_dim_v, dk, p.dk);

  WalkParams dv = walk_of(p, plan.shape, k, q, dout, of_keys, plan.dstates, p.dfinal_state);
  walk_back(by_dim, dv, p.dv);

  if (!p.dlog_decay) return;
  by_dim.decay_gradient({plan.shape, q, k, v, dout, of_queries, plan.pairs, plan.read, plan.given,
                         plan.products, slices_of(p.dim), p.dlog_decay},
                        stream);
}

void linear_attention_step(const LinearAttentionStep& p, void* stream) {
  if (is_empty(p)) return;
  find(p.dtype, 1).step(p, stream);
}

}  // namespace tileattn::cuda
