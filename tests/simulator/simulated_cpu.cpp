// The CPU entry points, carried out by the CUDA kernels in the PTX simulator.
//
// Linked with the torch binding in place of the CPU kernels, this makes operators on CPU tensors
// run the CUDA kernels, by the very code that hands tensors to them on a GPU.
#include <cuda_runtime_api.h>
#include <ptxsim.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tileattn/attention.h"
#include "tileattn/linear_attention.h"

namespace tileattn {
namespace {

/// The host memory that belongs to a call; the simulator reports every other access.
class Memory {
 public:
  ~Memory() {
    for (const auto& range : ranges_) ptxsim_unregister_range(range.first);
  }

  /// [batch, tokens, heads, dim], or a row of it; tokens of a grid in `outer` rows of rows.
  template <class Ref>
  void add(const Ref& tensor, DType dtype, std::int64_t batch, std::int64_t tokens,
           std::int64_t heads, std::int64_t dim, std::array<std::int64_t, 2> outer = {1, 1}) {
    if (std::min({batch, outer[0], outer[1], tokens, heads, dim}) <= 0) return;
    add(tensor.data, ((batch - 1) * tensor.batch_stride + (outer[0] - 1) * tensor.outer_stride[0] +
                      (outer[1] - 1) * tensor.outer_stride[1] + (tokens - 1) * tensor.token_stride +
                      (heads - 1) * tensor.head_stride + dim) *
                         size_of(dtype));
  }
  template <class T>
  void add_array(const T* data, std::int64_t count) {
    add(data, count * sizeof(T));
  }
  void add(const void* begin, std::size_t bytes) {
    auto* first = static_cast<char*>(const_cast<void*>(begin));
    if (first && bytes > 0) ranges_.emplace_back(first, first + bytes);
  }

  /// Tensors may overlap: slices of one projection.
  void declare() {
    std::sort(ranges_.begin(), ranges_.end());
    std::vector<std::pair<char*, char*>> joined;
    for (const auto& range : ranges_) {
      if (joined.empty() || range.first > joined.back().second) joined.push_back(range);
      else joined.back().second = std::max(joined.back().second, range.second);
    }
    ranges_ = joined;
    for (const auto& range : ranges_)
      ptxsim_register_range(range.first, range.second - range.first);
  }

 private:
  std::vector<std::pair<char*, char*>> ranges_;
};

template <class Ref>
void add_bias(Memory& memory, const Ref& bias, const AttentionProblem& p) {
  if (!bias.data || std::min({p.batch, p.heads_q, p.len_q, p.len_k}) <= 0) return;
  memory.add(bias.data, ((p.batch - 1) * bias.batch_stride + (p.heads_q - 1) * bias.head_stride +
                         (p.len_q - 1) * bias.query_stride + p.len_k) *
                            size_of(bias.dtype));
}

std::int64_t entries(const AttentionProblem& p) { return p.cu_seqlens_q ? 1 : p.batch; }

/// A tensor of `length` tokens of each entry, in a row or on the grid.
template <class Ref>
void add_tokens(Memory& memory, const AttentionProblem& p, const Ref& tensor, int length, int heads,
                int dim) {
  const auto& axis = p.neighborhood.axis;
  if (p.neighborhood.rank == 0) memory.add(tensor, p.dtype, entries(p), length, heads, dim);
  else
    memory.add(tensor, p.dtype, p.batch, axis[2].length, heads, dim,
               {axis[0].length, axis[1].length});
}

void add_shared(Memory& memory, const AttentionProblem& p) {
  add_tokens(memory, p, p.q, p.len_q, p.heads_q, p.dim);
  add_tokens(memory, p, p.k, p.len_k, p.heads_kv, p.dim);
  add_tokens(memory, p, p.v, p.len_k, p.heads_kv, p.dim_v);
  memory.add(p.extra_k, p.dtype, p.batch, p.extra_keys, p.heads_kv, p.dim);
  memory.add(p.extra_v, p.dtype, p.batch, p.extra_keys, p.heads_kv, p.dim_v);
  memory.add_array(p.cu_seqlens_q, p.batch + 1);
  memory.add_array(p.cu_seqlens_k, p.batch + 1);
  memory.add_array(p.alibi_slopes, (p.batch - 1) * p.alibi_batch_stride + p.heads_q);
  memory.add_array(p.sinks, p.heads_q);
  add_bias(memory, p.bias, p);
}

void add_all(Memory& memory, const AttentionForward& p) {
  add_shared(memory, p);
  add_tokens(memory, p, p.out, p.len_q, p.heads_q, p.dim_v);
  for (const float* rows : {p.lse, p.lse_low})
    memory.add_array(rows, entries(p) * p.len_q * p.heads_q);
  memory.add_array(p.out_low, entries(p) * p.len_q * p.heads_q * p.dim_v);
}

void add_all(Memory& memory, const AttentionBackward& p) {
  add_shared(memory, p);
  add_tokens(memory, p, p.out, p.len_q, p.heads_q, p.dim_v);
  add_tokens(memory, p, p.dout, p.len_q, p.heads_q, p.dim_v);
  add_tokens(memory, p, p.dq, p.len_q, p.heads_q, p.dim);
  add_tokens(memory, p, p.dk, p.len_k, p.heads_kv, p.dim);
  add_tokens(memory, p, p.dv, p.len_k, p.heads_kv, p.dim_v);
  memory.add(p.dextra_k, p.dtype, p.batch, p.extra_keys, p.heads_kv, p.dim);
  memory.add(p.dextra_v, p.dtype, p.batch, p.extra_keys, p.heads_kv, p.dim_v);
  memory.add_array(p.out_low, entries(p) * p.len_q * p.heads_q * p.dim_v);
  for (const float* rows : {p.lse, p.lse_low, p.dlse, static_cast<const float*>(p.delta)})
    memory.add_array(rows, entries(p) * p.len_q * p.heads_q);
  add_bias(memory, p.dbias, p);
}

std::int64_t entries(const LinearAttentionProblem& p) { return p.cu_seqlens ? 1 : p.batch; }
std::int64_t rows(const LinearAttentionProblem& p) { return entries(p) * p.len * p.heads_q; }

template <class Ref>
void add_state(Memory& memory, const Ref& state, const LinearAttentionProblem& p, int sequences) {
  const std::int64_t size = std::int64_t{sequences} * p.heads_q * feature_dim(p.feature_map, p.dim);
  memory.add_array(state.s, size * p.dim_v);
  if (p.normalize) memory.add_array(state.z, size);
}

void add_shared(Memory& memory, const LinearAttentionProblem& p) {
  if (p.q.data) memory.add(p.q, p.dtype, entries(p), p.len, p.heads_q, p.dim);
  memory.add(p.k, p.dtype, entries(p), p.len, p.heads_kv, p.dim);
  memory.add(p.v, p.dtype, entries(p), p.len, p.heads_kv, p.dim_v);
  memory.add_array(p.cu_seqlens, p.batch + 1);
  if (p.log_decay.data && rows(p) > 0)
    memory.add_array(p.log_decay.data, (entries(p) - 1) * p.log_decay.batch_stride +
                                           (p.len - 1) * p.log_decay.token_stride +
                                           (p.heads_q - 1) * p.log_decay.head_stride + 1);
  add_state(memory, p.initial_state, p, p.batch);
}

void add_all(Memory& memory, const LinearAttentionForward& p) {
  add_shared(memory, p);
  memory.add(p.out, p.dtype, entries(p), p.len, p.heads_q, p.dim_v);
  if (p.normalize) memory.add_array(p.denominator, rows(p));
  add_state(memory, p.final_state, p, p.batch);
}

void add_all(Memory& memory, const LinearAttentionBackward& p) {
  add_shared(memory, p);
  if (p.normalize) {
    memory.add(p.out, p.dtype, entries(p), p.len, p.heads_q, p.dim_v);
    memory.add_array(p.denominator, rows(p));
  }
  memory.add(p.dout, p.dtype, entries(p), p.len, p.heads_q, p.dim_v);
  memory.add(p.dq, p.dtype, entries(p), p.len, p.heads_q, p.dim);
  memory.add(p.dk, p.dtype, entries(p), p.len, p.heads_kv, p.dim);
  memory.add(p.dv, p.dtype, entries(p), p.len, p.heads_kv, p.dim_v);
  memory.add_array(p.dlog_decay, rows(p));
  add_state(memory, p.dfinal_state, p, p.batch);
  add_state(memory, p.dinitial_state, p, p.batch);
}

void add_all(Memory& memory, const LinearAttentionState& p) {
  add_shared(memory, p);
  add_state(memory, p.final_state, p, p.batch);
}

void add_all(Memory& memory, const LinearAttentionStep& p) {
  for (auto [tensor, heads, dim] :
       {std::tuple{&p.q, p.heads_q, p.dim}, {&p.k, p.heads_kv, p.dim}, {&p.v, p.heads_kv, p.dim_v}})
    memory.add(*tensor, p.dtype, 1, p.batch, heads, dim);
  memory.add(p.out, p.dtype, 1, p.batch, p.heads_q, p.dim_v);
  if (p.log_decay.data)
    memory.add_array(p.log_decay.data, (p.batch - 1) * p.log_decay.token_stride +
                                           (p.heads_q - 1) * p.log_decay.head_stride + 1);
  memory.add_array(p.slots, p.batch);
  add_state(memory, p.states, p, p.num_states);
}

/// Runs the call with a poisoned workspace.
template <class Problem>
void simulate(const Problem& problem, std::size_t workspace_bytes,
              void (*run)(const Problem&, void* workspace, void* stream)) {
  constexpr std::size_t kAlignment = 256;
  std::size_t allocated = (workspace_bytes + kAlignment) / kAlignment * kAlignment;
  std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(kAlignment, allocated),
                                                   std::free);
  std::memset(workspace.get(), 0xFF, allocated);
  Memory memory;
  add_all(memory, problem);
  memory.add(workspace.get(), workspace_bytes);
  memory.declare();
  try {
    run(problem, workspace.get(), nullptr);
  } catch (const std::exception& error) {
    cudaDeviceReset();  // else the error would stick to later launches
    throw std::runtime_error(std::string(error.what()) + "\n" + ptxsim_last_report());
  }
}

}  // namespace

namespace cpu {

void attention_forward(const AttentionForward& problem, const Executor&) {
  simulate(problem, cuda::attention_forward_workspace(problem), cuda::attention_forward);
}

void attention_backward(const AttentionBackward& problem, const Executor&) {
  simulate(problem, cuda::attention_backward_workspace(problem), cuda::attention_backward);
}

void linear_attention_forward(const LinearAttentionForward& problem, const Executor&) {
  simulate(problem, cuda::linear_attention_forward_workspace(problem),
           cuda::linear_attention_forward);
}

void linear_attention_backward(const LinearAttentionBackward& problem, const Executor&) {
  simulate(problem, cuda::linear_attention_backward_workspace(problem),
           cuda::linear_attention_backward);
}

void segment_state(const LinearAttentionState& problem, const Executor&) {
  simulate(problem, cuda::segment_state_workspace(problem), cuda::segment_state);
}

void linear_attention_step(const LinearAttentionStep& problem, const Executor&) {
  auto step = [](const LinearAttentionStep& p, void*, void* stream) {
    cuda::linear_attention_step(p, stream);
  };
  simulate<LinearAttentionStep>(problem, 0, step);
}

}  // namespace cpu
}  // namespace tileattn
