// Entry points of linear attention: which scans a call is made of, and what they hand on.
//
// Where (sequence, head) pairs are few, their tokens are cut into segments: first each segment's
// own state (segment_state), then the states before each (pass), then all segments at once
// (chunk_scan). A call that is not causal goes the same way: every query reads the last state.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/choose.h"
#include "kernel_table.h"
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
  if (p.feature_map == FeatureMap::kTaylor2 && p.dim > kMaxCudaTaylor2Dim)
    throw std::invalid_argument("tileattn: taylor2 on CUDA takes head dims of q and k up to " +
                                std::to_string(kMaxCudaTaylor2Dim));
}

/// The kernels for queries and keys of `dim` channels.
const KernelRow<LinearKernels>& find(DType dtype, FeatureMap map, int dim) {
  auto rows = map == FeatureMap::kTaylor2 ? linear_taylor2_rows() : linear_rows();
  if (auto* row = choose(rows, dtype, dim, [](const LinearKernels&) { return true; })) return *row;
  throw std::invalid_argument(
      "tileattn: no CUDA kernel of linear attention was built for head "
      "dim " +
      std::to_string(dim) + " and this dtype and device");
}

bool with_taylor2(const LinearAttentionProblem& p) { return p.feature_map == FeatureMap::kTaylor2; }

/// Of a scan whose values, in the roles of chunk_scan.cuh, have `channels`. taylor2 cuts those of v
/// in all of its scans.
int slices_of(const LinearAttentionProblem& p, int channels) {
  return with_taylor2(p) ? ceil_div(p.dim_v, kTaylor2Values) : ceil_div(channels, kValues);
}

LinearShape shape_of(const LinearAttentionProblem& p) {
  LinearShape shape;
  shape.batch = p.batch;
  shape.heads = p.heads_q;
  shape.dim = feature_dim(p.feature_map, p.dim);
  shape.dim_v = p.dim_v;
  shape.len = p.len;
  shape.cu_seqlens = p.cu_seqlens;
  shape.decay = p.log_decay;
  shape.segments =
      choose_segments(std::int64_t{p.batch} * p.heads_q * slices_of(p, p.dim_v),
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

/// The states between segments of one scan, in the workspace.
struct PassedStates {
  StateSlots slots;
  float* decays = nullptr;

  /// No memory where each (sequence, head) is scanned in one go.
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
    SegmentStateParams own;
    own.shape = shape;
    own.keys = keys;
    own.values = values;
    own.extra = slots.z ? Extra::kValues : Extra::kNone;
    own.numbers = numbers;
    own.own = slots;
    own.decays = decays;
    own.exact = exact;
    kernels.segment_state(own, backwards, stream);
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
  // Parts of gradients that are summed later: dq's, then dk's; dv's.
  float *token_parts = nullptr, *value_parts = nullptr;
  float *read = nullptr, *given = nullptr, *pairs = nullptr, *products = nullptr;

  BackwardPlan(const LinearAttentionBackward& p, void* memory)
      : shape(shape_of(p)),
        workspace(memory),
        states(p, shape, workspace),
        dstates(p, shape, workspace) {
    const std::int64_t rows = shape.rows(), slices = slices_of(p, p.dim);
    if (p.normalize) extra = workspace.take(rows);
    const std::int64_t shared = p.heads_q != p.heads_kv;  // gradients of k and v
    token_parts = workspace.take(rows * p.dim * (with_taylor2(p) ? slices : shared));
    value_parts = workspace.take(rows * p.dim_v * shared);
    if (!p.dlog_decay) return;
    pairs = workspace.take(rows);
    read = workspace.take(slices * rows);
    given = workspace.take(slices * rows);
    products = workspace.take(slices * p.batch * p.heads_q * shape.segments);
  }
};

/// A scan that continues the states, or starts from `first` if there are no segments.
ScanParams scan_of(const LinearAttentionProblem& p, const LinearShape& shape,
                   const Operand& queries, const Operand& keys, const Operand& values,
                   const TokenNumbers& numbers, const PassedStates& states, ConstStateRef first) {
  ScanParams scan;
  scan.shape = shape;
  scan.slices = scan.all_slices = slices_of(p, values.dim);
  scan.queries = queries;
  scan.keys = keys;
  scan.values = values;
  scan.numbers = numbers;
  scan.causal = p.causal;
  scan.first = first;
  scan.start = states.slots;
  return scan;
}

bool is_empty(const LinearAttentionProblem& p) { return p.batch == 0 || p.heads_q == 0; }

}  // namespace

std::size_t linear_attention_forward_workspace(const LinearAttentionForward& problem) {
  return is_empty(problem) ? 0 : ForwardPlan(problem, nullptr).workspace.bytes();
}

void linear_attention_forward(const LinearAttentionForward& p, void* workspace, void* stream) {
  if (is_empty(p)) return;
  check(p);
  const LinearKernels& kernels = find(p.dtype, p.feature_map, p.dim).kernels;
  const ForwardPlan plan(p, workspace);
  const Operand q = query_operand(p), k = key_operand(p), v = value_operand(p);
  if (plan.states)
    plan.states.compute(kernels, plan.shape, k, v, {}, false, false, p.initial_state, p.final_state,
                        stream);
  TokenNumbers scaled;
  scaled.scale = p.scale;
  scaled.of_queries = true;
  ScanParams scan = scan_of(p, plan.shape, q, k, v, scaled, plan.states, p.initial_state);
  scan.extra = p.normalize ? Extra::kValues : Extra::kNone;
  scan.out = p.out;
  scan.denominator = p.denominator;
  if (!plan.states) scan.last = p.final_state;
  kernels.scan(scan, stream);
}

std::size_t segment_state_workspace(const LinearAttentionState& problem) {
  if (is_empty(problem)) return 0;
  LinearAttentionState passed = problem;
  passed.causal = false;  // without a scan, the states are always passed
  return ForwardPlan(passed, nullptr).workspace.bytes();
}

void segment_state(const LinearAttentionState& p, void* workspace, void* stream) {
  if (is_empty(p)) return;
  check(p);
  LinearAttentionState passed = p;
  passed.causal = false;
  const ForwardPlan plan(passed, workspace);
  plan.states.compute(find(p.dtype, p.feature_map, p.dim).kernels, plan.shape, key_operand(p),
                      value_operand(p), {}, false, false, p.initial_state, p.final_state, stream);
}

std::size_t linear_attention_backward_workspace(const LinearAttentionBackward& problem) {
  return is_empty(problem) ? 0 : BackwardPlan(problem, nullptr).workspace.bytes();
}

void linear_attention_backward(const LinearAttentionBackward& p, void* workspace, void* stream) {
  if (is_empty(p)) return;
  check(p);
  const auto& row = find(p.dtype, p.feature_map, p.dim);
  const auto& row_v = find(p.dtype, p.feature_map, with_taylor2(p) ? p.dim : p.dim_v);
  const LinearKernels &by_dim = row.kernels, &by_dim_v = row_v.kernels;
  const LinearKernels& by_both = row.dim < row_v.dim ? by_dim_v : by_dim;
  const BackwardPlan plan(p, workspace);
  const Operand q = query_operand(p), k = key_operand(p), v = value_operand(p);
  const Operand dout{p.dout, p.dim_v, 1};
  const int group = p.heads_q / p.heads_kv;
  if (p.normalize) by_dim.denominator_gradient({plan.shape, p.out, p.dout, plan.extra}, stream);
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

  // A gradient that several query heads, or with taylor2 slices of v, add to is written in parts.
  auto is_sliced = [&](const ScanParams& scan) { return with_taylor2(p) && scan.transposed; };
  auto send_to = [&](TensorRef to, ScanParams& scan, int heads) {
    scan.out = to;
    if (is_sliced(scan) || heads > 1)
      scan.partial = scan.transposed ? plan.token_parts : plan.value_parts;
  };
  auto sum_parts = [&](const ScanParams& scan, int heads) {
    if (scan.partial)
      by_dim.sum_parts({plan.shape, scan.partial, scan.out, scan.values.dim, heads,
                        is_sliced(scan) ? scan.slices : 1},
                       stream);
  };

  ScanParams dq = scan_of(p, plan.shape, dout, v, k, of_queries, plan.states, p.initial_state);
  dq.transposed = true;
  dq.extra = p.normalize ? Extra::kKeys : Extra::kNone;
  dq.dot_with = q;
  dq.exact = exact;
  if (p.dlog_decay) {
    dq.dots = plan.read;
    dq.product_first = p.dfinal_state;
    dq.product_start = plan.dstates.slots;
    dq.products = plan.products;
  }
  send_to(p.dq, dq, 1);
  by_dim_v.scan(dq, stream);
  sum_parts(dq, 1);

  SweepParams sweep;
  ScanParams &dk = sweep.dk, &dv = sweep.dv;
  dk = scan_of(p, plan.shape, v, dout, q, of_keys, plan.dstates, p.dfinal_state);
  dk.transposed = true;
  dk.extra = dq.extra;
  dk.dot_with = k;
  dk.exact = exact;
  dk.dots = plan.given;
  if (!plan.dstates) dk.last = p.dinitial_state;
  send_to(p.dk, dk, group);
  dv = scan_of(p, plan.shape, k, q, dout, of_keys, plan.dstates, p.dfinal_state);
  send_to(p.dv, dv, group);
  dv.first_slice = dk.slices;
  dk.all_slices = dv.all_slices = dk.slices + dv.slices;
  by_both.sweep(sweep, stream);
  sum_parts(dk, group);
  sum_parts(dv, group);

  if (!p.dlog_decay) return;
  by_dim.decay_gradient({plan.shape, p.feature_map, q, k, v, dout, of_queries, plan.pairs,
                         plan.read, plan.given, plan.products, dq.slices, p.dlog_decay},
                        stream);
}

void linear_attention_step(const LinearAttentionStep& p, void* stream) {
  if (is_empty(p)) return;
  find(p.dtype, FeatureMap::kNone, 1).kernels.decode_step(p, stream);
}

}  // namespace tileattn::cuda
