// torch.ops.tileattn.linear_attention_forward / _backward / _step and segment_state on torch's
// stable ABI. Python validates for people; the checks here guard memory only.
#include "tileattn/linear_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "run.h"
#include "tensors.h"

namespace tileattn::torch_binding {
namespace {

/// Everything the ops share, as they receive it. Packed sequences: batch 1 and cu_seqlens.
struct LinearInputs {
  OptionalTensor q;  // segment_state has none
  Tensor k, v;
  OptionalTensor log_decay, s, z, cu_seqlens;
  std::int64_t heads;  // of q, and of the states
  double scale;
  bool causal, normalize;
  std::int64_t feature_map;  // of FeatureMap

  std::int64_t sequences() const { return cu_seqlens ? cu_seqlens->numel() - 1 : k.size(0); }
  FeatureMap map() const { return static_cast<FeatureMap>(feature_map); }
  std::int64_t features() const { return feature_dim(map(), static_cast<int>(k.size(3))); }
  Sizes state_sizes() const { return {sequences(), heads, features(), v.size(3)}; }
  Sizes z_sizes() const { return {sequences(), heads, features()}; }
  Sizes token_sizes() const { return {k.size(0), k.size(1), heads}; }
};

void check_like(const OptionalTensor& tensor, const Sizes& sizes, ScalarType type,
                const char* name) {
  STD_TORCH_CHECK(!tensor || (tensor->scalar_type() == type && sizes_of(*tensor) == sizes),
                  "tileattn: ", name, " has a wrong dtype or shape");
}

void check(const LinearInputs& in) {
  STD_TORCH_CHECK(in.k.dim() == 4 && in.v.dim() == 4 && (!in.q || in.q->dim() == 4),
                  "tileattn: q, k and v must have rank 4");
  for (std::int64_t i : {0, 1, 2})
    STD_TORCH_CHECK(in.k.size(i) == in.v.size(i),
                    "tileattn: k and v must agree in batch, tokens and heads");
  STD_TORCH_CHECK(in.k.size(2) > 0 && in.heads % in.k.size(2) == 0,
                  "tileattn: heads of k must divide heads of q");
  for (std::int64_t dim : {in.k.size(3), in.v.size(3)})
    STD_TORCH_CHECK(dim > 0 && dim <= kMaxLinearDim, "tileattn: unsupported head dim ", dim);
  STD_TORCH_CHECK(in.feature_map == 0 || in.feature_map == 1, "tileattn: no feature map ",
                  in.feature_map);
  STD_TORCH_CHECK(in.features() <= kMaxLinearDim, "tileattn: too many features");
  STD_TORCH_CHECK(in.k.size(1) < (1 << 29), "tileattn: sequence too long");
  STD_TORCH_CHECK(in.k.scalar_type() == in.v.scalar_type(), "tileattn: one dtype for k and v");
  if (in.q) {
    Sizes sizes = in.token_sizes();
    sizes.push_back(in.k.size(3));
    check_like(in.q, sizes, in.k.scalar_type(), "q");
  }
  if (in.log_decay) {
    bool constant = in.log_decay->dim() == 1;
    check_like(in.log_decay, constant ? Sizes{in.heads} : in.token_sizes(), ScalarType::Float,
               "log_decay");
    STD_TORCH_CHECK(in.causal, "tileattn: log_decay needs causal attention");
  }
  STD_TORCH_CHECK(!in.s || in.z.has_value() == in.normalize, "tileattn: z goes with normalize");
  check_like(in.s, in.state_sizes(), ScalarType::Float, "the initial state");
  check_like(in.z, in.z_sizes(), ScalarType::Float, "the initial z");
  if (in.cu_seqlens)
    STD_TORCH_CHECK(in.cu_seqlens->scalar_type() == ScalarType::Int &&
                        in.cu_seqlens->numel() >= 1 && in.k.size(0) == 1,
                    "tileattn: cu_seqlens must be int32 [sequences + 1], with batch 1");
}

/// Rows must be contiguous, and for CUDA kernels readable as 16-byte vectors, which only rows of
/// whole vectors can be; other strides are free.
Tensor with_unit_rows(const Tensor& tensor) {
  if (tensor.size(3) * size_of(dtype_of(tensor)) % 16 == 0) return with_vector_rows(tensor);
  return tensor.size(3) > 1 && tensor.stride(3) != 1 ? torch::stable::contiguous(tensor) : tensor;
}

LinearInputs readable(LinearInputs in) {
  if (in.q) in.q = with_unit_rows(*in.q);
  in.k = with_unit_rows(in.k);
  in.v = with_unit_rows(in.v);
  in.s = contiguous(in.s);
  in.z = contiguous(in.z);
  in.cu_seqlens = contiguous(in.cu_seqlens);
  return in;
}

ConstStateRef const_state(const OptionalTensor& s, const OptionalTensor& z) {
  return {data_or_null<float>(s), data_or_null<float>(z)};
}

StateRef state(const Tensor& s, const Tensor& z) {
  return {static_cast<float*>(s.data_ptr()), static_cast<float*>(z.data_ptr())};
}

/// Fills the shared part of a problem; `in` has passed check() and readable().
void describe(const LinearInputs& in, LinearAttentionProblem& problem) {
  problem.dtype = dtype_of(in.k);
  problem.batch = static_cast<int>(in.sequences());
  problem.heads_q = static_cast<int>(in.heads);
  problem.heads_kv = static_cast<int>(in.k.size(2));
  problem.dim = static_cast<int>(in.k.size(3));
  problem.dim_v = static_cast<int>(in.v.size(3));
  problem.len = static_cast<int>(in.k.size(1));
  problem.cu_seqlens = data_or_null<std::int32_t>(in.cu_seqlens);
  if (in.q) problem.q = const_ref(*in.q);
  problem.k = const_ref(in.k);
  problem.v = const_ref(in.v);
  if (in.log_decay) {
    const Tensor& decay = *in.log_decay;
    auto data = static_cast<const float*>(decay.data_ptr());
    problem.log_decay = decay.dim() == 1
                            ? DecayRef{data, 0, 0, step(decay, 0)}
                            : DecayRef{data, step(decay, 0), step(decay, 1), step(decay, 2)};
  }
  problem.causal = in.causal;
  problem.normalize = in.normalize;
  problem.scale = static_cast<float>(in.scale);
  problem.feature_map = in.map();
  problem.initial_state = const_state(in.s, in.z);
}

/// Memory for a result with a row for each token.
Tensor new_rows(const LinearInputs& in, const Sizes& sizes, ScalarType dtype) {
  return new_result(in.k, sizes, dtype, in.cu_seqlens.has_value());
}

Tensor new_state(const Tensor& like, const Sizes& sizes) {
  return new_result(like, sizes, ScalarType::Float);
}

const Sizes kNothing{0};

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_attention_forward(
    Tensor q, Tensor k, Tensor v, OptionalTensor log_decay, OptionalTensor s, OptionalTensor z,
    OptionalTensor cu_seqlens, double scale, bool causal, bool normalize,
    std::int64_t feature_map) {
  LinearInputs in{q,          k,         v,     log_decay, s,         z,
                  cu_seqlens, q.size(2), scale, causal,    normalize, feature_map};
  check(in);
  in = readable(in);
  Sizes out_sizes = in.token_sizes();
  out_sizes.push_back(v.size(3));
  Tensor out = new_rows(in, out_sizes, q.scalar_type());
  Tensor denominator = new_rows(in, normalize ? in.token_sizes() : kNothing, ScalarType::Float);
  Tensor last_s = new_state(k, in.state_sizes());
  Tensor last_z = new_state(k, normalize ? in.z_sizes() : kNothing);
  LinearAttentionForward problem;
  describe(in, problem);
  problem.out = ref(out);
  problem.denominator = static_cast<float*>(denominator.data_ptr());
  problem.final_state = state(last_s, last_z);
  if (last_s.numel() > 0)
    run<LinearAttentionForward>(TILEATTN_BACKENDS(linear_attention_forward), problem, k);
  return {out, denominator, last_s, last_z};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_attention_backward(
    Tensor dout, OptionalTensor dlast_s, OptionalTensor dlast_z, Tensor q, Tensor k, Tensor v,
    OptionalTensor out, OptionalTensor denominator, OptionalTensor log_decay, OptionalTensor s,
    OptionalTensor z, OptionalTensor cu_seqlens, double scale, bool causal, bool normalize,
    bool decay_grad, std::int64_t feature_map) {
  LinearInputs in{q,          k,         v,     log_decay, s,         z,
                  cu_seqlens, q.size(2), scale, causal,    normalize, feature_map};
  check(in);
  Sizes out_sizes = in.token_sizes();
  out_sizes.push_back(v.size(3));
  check_like(dout, out_sizes, q.scalar_type(), "dout");
  check_like(out, out_sizes, q.scalar_type(), "out");
  check_like(denominator, in.token_sizes(), ScalarType::Float, "denominator");
  check_like(dlast_s, in.state_sizes(), ScalarType::Float, "the final state's gradient");
  check_like(dlast_z, in.z_sizes(), ScalarType::Float, "the final z's gradient");
  STD_TORCH_CHECK(!normalize || (out && denominator), "tileattn: normalize needs out");
  STD_TORCH_CHECK(!dlast_s || dlast_z.has_value() == normalize, "tileattn: z goes with normalize");
  in = readable(in);
  dout = with_unit_rows(dout);
  if (out) out = with_unit_rows(*out);
  denominator = contiguous(denominator);
  dlast_s = contiguous(dlast_s);
  dlast_z = contiguous(dlast_z);
  auto gradient_of = [&](const Tensor& t) { return new_rows(in, sizes_of(t), t.scalar_type()); };
  Tensor dq = gradient_of(q), dk = gradient_of(k), dv = gradient_of(v);
  const bool with_decay = decay_grad && log_decay;
  Tensor ddecay = new_rows(in, with_decay ? in.token_sizes() : kNothing, ScalarType::Float);
  Tensor ds = new_state(k, in.state_sizes()),
         dz = new_state(k, normalize ? in.z_sizes() : kNothing);

  LinearAttentionBackward problem;
  describe(in, problem);
  if (out) problem.out = const_ref(*out);
  problem.dout = const_ref(dout);
  problem.denominator = data_or_null<float>(denominator);
  problem.dfinal_state = const_state(dlast_s, dlast_z);
  problem.dq = ref(dq);
  problem.dk = ref(dk);
  problem.dv = ref(dv);
  if (with_decay) problem.dlog_decay = static_cast<float*>(ddecay.data_ptr());
  problem.dinitial_state = state(ds, dz);
  if (ds.numel() > 0)
    run<LinearAttentionBackward>(TILEATTN_BACKENDS(linear_attention_backward), problem, k);
  return {dq, dk, dv, ddecay, ds, dz};
}

std::tuple<Tensor, Tensor> segment_state(Tensor k, Tensor v, OptionalTensor log_decay,
                                         OptionalTensor s, OptionalTensor z,
                                         OptionalTensor cu_seqlens, std::int64_t heads,
                                         bool normalize, std::int64_t feature_map) {
  LinearInputs in{std::nullopt, k,     v,   log_decay, s,         z,
                  cu_seqlens,   heads, 1.0, true,      normalize, feature_map};
  check(in);
  in = readable(in);
  Tensor last_s = new_state(k, in.state_sizes());
  Tensor last_z = new_state(k, normalize ? in.z_sizes() : kNothing);
  LinearAttentionState problem;
  describe(in, problem);
  problem.final_state = state(last_s, last_z);
  if (last_s.numel() > 0) run<LinearAttentionState>(TILEATTN_BACKENDS(segment_state), problem, k);
  return {last_s, last_z};
}

/// q, k, v: [batch, heads, dim]. s and z: the pool, contiguous, updated in place.
Tensor linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor s, OptionalTensor z,
                             OptionalTensor log_decay, OptionalTensor slots, double scale) {
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && s.dim() == 4,
                  "tileattn: q, k and v must have rank 3, s rank 4");
  const std::int64_t batch = q.size(0), heads = q.size(1), dim = q.size(2), dim_v = v.size(2);
  check_like(k, {batch, k.size(1), dim}, q.scalar_type(), "k");
  check_like(v, {batch, k.size(1), dim_v}, q.scalar_type(), "v");
  check_like(s, {s.size(0), heads, dim, dim_v}, ScalarType::Float, "s");
  check_like(z, {s.size(0), heads, dim}, ScalarType::Float, "z");
  STD_TORCH_CHECK(s.is_contiguous() && (!z || z->is_contiguous()),
                  "tileattn: states must be contiguous");
  STD_TORCH_CHECK(slots || s.size(0) == batch, "tileattn: s must have a state for each entry");
  check_like(slots, {batch}, ScalarType::Int, "slots");
  if (log_decay)
    check_like(log_decay, log_decay->dim() == 1 ? Sizes{heads} : Sizes{batch, heads},
               ScalarType::Float, "log_decay");
  q = torch::stable::contiguous(q);
  k = torch::stable::contiguous(k);
  v = torch::stable::contiguous(v);
  log_decay = contiguous(log_decay);
  slots = contiguous(slots);
  Tensor out = new_result(q, {batch, heads, dim_v}, q.scalar_type());
  LinearAttentionStep problem;
  problem.dtype = dtype_of(q);
  problem.batch = static_cast<int>(batch);
  problem.heads_q = static_cast<int>(heads);
  problem.heads_kv = static_cast<int>(k.size(1));
  problem.dim = static_cast<int>(dim);
  problem.dim_v = static_cast<int>(dim_v);
  problem.len = 1;
  problem.q = const_ref(q);
  problem.k = const_ref(k);
  problem.v = const_ref(v);
  problem.out = ref(out);
  if (log_decay)
    problem.log_decay = {data_or_null<float>(log_decay), 0, log_decay->dim() == 1 ? 0 : heads, 1};
  problem.normalize = z.has_value();
  problem.scale = static_cast<float>(scale);
  problem.states = {static_cast<float*>(s.data_ptr()),
                    z ? static_cast<float*>(z->data_ptr()) : nullptr};
  problem.num_states = static_cast<int>(s.size(0));
  problem.slots = data_or_null<std::int32_t>(slots);
#ifdef TILEATTN_HAS_CUDA
  if (q.is_cuda()) {
    torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
    cuda::linear_attention_step(problem, current_cuda_stream(q.get_device_index()));
    return out;
  }
#endif
  cpu::linear_attention_step(problem, torch_executor());
  return out;
}

}  // namespace
}  // namespace tileattn::torch_binding

STABLE_TORCH_LIBRARY_IMPL(TILEATTN_OP_NAMESPACE, CPU, library) {
  namespace ops = tileattn::torch_binding;
  library.impl("linear_attention_forward", TORCH_BOX(&ops::linear_attention_forward));
  library.impl("linear_attention_backward", TORCH_BOX(&ops::linear_attention_backward));
  library.impl("segment_state", TORCH_BOX(&ops::segment_state));
  library.impl("linear_attention_step", TORCH_BOX(&ops::linear_attention_step));
}

#ifdef TILEATTN_HAS_CUDA
STABLE_TORCH_LIBRARY_IMPL(TILEATTN_OP_NAMESPACE, CUDA, library) {
  namespace ops = tileattn::torch_binding;
  library.impl("linear_attention_forward", TORCH_BOX(&ops::linear_attention_forward));
  library.impl("linear_attention_backward", TORCH_BOX(&ops::linear_attention_backward));
  library.impl("segment_state", TORCH_BOX(&ops::segment_state));
  library.impl("linear_attention_step", TORCH_BOX(&ops::linear_attention_step));
}
#endif
