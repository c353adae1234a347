// torch.ops.tileattn.attention_forward / attention_backward on torch's stable
// ABI. Python validates for people; the checks here guard memory only.
#include "tileattn/attention.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "low_parts.h"
#include "run.h"
#include "tensors.h"

namespace tileattn::torch_binding {
namespace {

/// Everything forward and backward share, as the ops receive it.
struct Inputs {
  Tensor q, k, v;
  OptionalTensor bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k;
  double scale, softcap;
  std::int64_t window_left, window_right, sink_tokens;
  bool causal;
};

bool is_packed(const Inputs& in) { return in.cu_seqlens_q.has_value(); }

/// Makes every tensor readable by the kernels, copying only where it is not.
Inputs readable(Inputs in) {
  in.q = with_vector_rows(in.q);
  in.k = with_vector_rows(in.k);
  in.v = with_vector_rows(in.v);
  if (in.bias && in.bias->size(3) > 1 && in.bias->stride(3) != 1) in.bias = contiguous(in.bias);
  in.alibi_slopes = contiguous(in.alibi_slopes);
  in.sinks = contiguous(in.sinks);
  in.cu_seqlens_q = contiguous(in.cu_seqlens_q);
  in.cu_seqlens_k = contiguous(in.cu_seqlens_k);
  return in;
}

void check_type(const OptionalTensor& tensor, ScalarType type, const char* what) {
  STD_TORCH_CHECK(!tensor || tensor->scalar_type() == type, "tileattn: ", what);
}

void check(const Inputs& in) {
  std::int64_t rank = is_packed(in) ? 3 : 4;
  STD_TORCH_CHECK(in.cu_seqlens_k.has_value() == is_packed(in),
                  "tileattn: cu_seqlens_q and cu_seqlens_k go together");
  STD_TORCH_CHECK(in.q.dim() == rank && in.k.dim() == rank && in.v.dim() == rank,
                  "tileattn: q, k and v must have rank ", rank);
  const std::int64_t token = rank - 3, head = rank - 2, dim = rank - 1;
  STD_TORCH_CHECK(in.k.size(token) == in.v.size(token) && in.k.size(head) == in.v.size(head),
                  "tileattn: k and v must agree in tokens and heads");
  STD_TORCH_CHECK(in.q.size(dim) == in.k.size(dim), "tileattn: q and k must agree in dim");
  STD_TORCH_CHECK(in.k.size(head) > 0 && in.q.size(head) % in.k.size(head) == 0,
                  "tileattn: heads of k must divide heads of q");
  for (std::int64_t d : {in.q.size(dim), in.v.size(dim)})
    STD_TORCH_CHECK(d > 0 && d % 8 == 0 && d <= 256, "tileattn: unsupported head dim ", d);
  STD_TORCH_CHECK(
      in.q.scalar_type() == in.k.scalar_type() && in.q.scalar_type() == in.v.scalar_type(),
      "tileattn: q, k and v must have one dtype");
  if (!is_packed(in))
    STD_TORCH_CHECK(in.q.size(0) == in.k.size(0) && in.q.size(0) == in.v.size(0),
                    "tileattn: q, k and v must agree in batch");
  for (const Tensor* t : {&in.q, &in.k, &in.v})
    STD_TORCH_CHECK(t->size(token) < (1 << 29), "tileattn: sequence too long");
  check_type(in.alibi_slopes, ScalarType::Float, "alibi_slopes must be float32");
  check_type(in.sinks, ScalarType::Float, "sinks must be float32");
  check_type(in.cu_seqlens_q, ScalarType::Int, "cu_seqlens_q must be int32");
  check_type(in.cu_seqlens_k, ScalarType::Int, "cu_seqlens_k must be int32");
  if (is_packed(in)) {
    STD_TORCH_CHECK(
        in.cu_seqlens_q->numel() == in.cu_seqlens_k->numel() && in.cu_seqlens_q->numel() >= 1,
        "tileattn: cu_seqlens_q and cu_seqlens_k must have one length");
    STD_TORCH_CHECK(!in.bias, "tileattn: bias is not supported with cu_seqlens");
  }
  std::int64_t batch = is_packed(in) ? in.cu_seqlens_q->numel() - 1 : in.q.size(0);
  auto broadcasts = [](std::int64_t size, std::int64_t to) { return size == 1 || size == to; };
  if (in.bias) {
    const Tensor& bias = *in.bias;
    STD_TORCH_CHECK(bias.dim() == 4 && broadcasts(bias.size(0), batch) &&
                        broadcasts(bias.size(1), in.q.size(head)) &&
                        broadcasts(bias.size(2), in.q.size(token)) &&
                        bias.size(3) == in.k.size(token),
                    "tileattn: bias does not broadcast to [batch, heads, queries, keys]");
  }
  if (in.sinks)
    STD_TORCH_CHECK(in.sinks->numel() == in.q.size(head), "tileattn: sinks must be [heads]");
  if (in.alibi_slopes)
    STD_TORCH_CHECK(
        in.alibi_slopes->numel() == in.q.size(head) * (in.alibi_slopes->dim() == 2 ? batch : 1),
        "tileattn: alibi_slopes must be [heads] or [batch, heads]");
}

/// Fills the shared part of a problem; `in` has passed check() and readable().
void describe(const Inputs& in, AttentionProblem& problem) {
  const std::int64_t token = in.q.dim() - 3;
  auto size = [](const Tensor& t, std::int64_t dim) { return static_cast<int>(t.size(dim)); };
  problem.dtype = dtype_of(in.q);
  problem.batch = is_packed(in) ? static_cast<int>(in.cu_seqlens_q->numel()) - 1 : size(in.q, 0);
  problem.heads_q = size(in.q, token + 1);
  problem.heads_kv = size(in.k, token + 1);
  problem.dim = size(in.q, token + 2);
  problem.dim_v = size(in.v, token + 2);
  problem.len_q = size(in.q, token);
  problem.len_k = size(in.k, token);
  problem.cu_seqlens_q = data_or_null<std::int32_t>(in.cu_seqlens_q);
  problem.cu_seqlens_k = data_or_null<std::int32_t>(in.cu_seqlens_k);
  problem.q = const_ref(in.q);
  problem.k = const_ref(in.k);
  problem.v = const_ref(in.v);
  problem.pattern.left = static_cast<int>(std::min<std::int64_t>(in.window_left, 1 << 30));
  problem.pattern.right = static_cast<int>(std::min<std::int64_t>(in.window_right, 1 << 30));
  problem.pattern.sink_tokens = static_cast<int>(std::min<std::int64_t>(in.sink_tokens, 1 << 30));
  problem.pattern.causal = in.causal;
  problem.scale = static_cast<float>(in.scale);
  problem.softcap = static_cast<float>(in.softcap);
  problem.alibi_slopes = data_or_null<float>(in.alibi_slopes);
  problem.alibi_batch_stride = in.alibi_slopes && in.alibi_slopes->dim() == 2 ? problem.heads_q : 0;
  if (in.bias) {
    BiasRef b = bias_ref(*in.bias);
    problem.bias = {b.data, b.batch_stride, b.head_stride, b.query_stride, b.dtype};
  }
  problem.sinks = data_or_null<float>(in.sinks);
}

/// The sizes of q with its last dimension left out, or replaced.
Sizes rows_of(const Tensor& q) { return {q.sizes().begin(), q.sizes().end() - 1}; }
Sizes rows_of(const Tensor& q, std::int64_t last) {
  Sizes sizes = rows_of(q);
  sizes.push_back(last);
  return sizes;
}

/// The fp32 buffer for the gradient of a bias. In deterministic mode batch and
/// heads are kept apart (the caller sums them), so that no two blocks add to
/// one element.
Tensor bias_gradient_buffer(const Inputs& in, bool deterministic) {
  const Tensor& bias = *in.bias;
  Sizes sizes = sizes_of(bias);
  if (deterministic) {
    sizes[0] = in.q.size(0);
    sizes[1] = in.q.size(2);
  }
  return torch::stable::new_zeros(bias, sizes, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_forward(
    Tensor q, Tensor k, Tensor v, OptionalTensor bias, OptionalTensor alibi_slopes,
    OptionalTensor sinks, OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, double scale,
    double softcap, std::int64_t window_left, std::int64_t window_right, std::int64_t sink_tokens,
    bool causal, bool /*deterministic: the forward always is*/, bool low_parts) {
  Inputs in{
      q,     k,       v,           bias,         alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k,
      scale, softcap, window_left, window_right, sink_tokens,  causal};
  check(in);
  in = readable(in);
  Tensor out = new_result(q, rows_of(q, v.size(v.dim() - 1)), q.scalar_type(), is_packed(in));
  Tensor lse = new_result(q, rows_of(q), ScalarType::Float);
  if (is_packed(in)) torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  AttentionForward problem;
  describe(in, problem);
  problem.out = ref(out);
  problem.lse = static_cast<float*>(lse.data_ptr());
  LowParts low = new_low_parts(out, lse, low_parts, is_packed(in), problem);
  if (out.numel() > 0) run(problem, q);
  return {out, lse, low.out, low.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
    Tensor out_low, Tensor lse_low, OptionalTensor bias, OptionalTensor alibi_slopes,
    OptionalTensor sinks, OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, double scale,
    double softcap, std::int64_t window_left, std::int64_t window_right, std::int64_t sink_tokens,
    bool causal, bool deterministic, bool bias_grad) {
  Inputs in{
      q,     k,       v,           bias,         alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k,
      scale, softcap, window_left, window_right, sink_tokens,  causal};
  check(in);
  STD_TORCH_CHECK(dout.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type(),
                  "tileattn: out and dout must have the dtype of q");
  const Sizes out_sizes = rows_of(q, v.size(v.dim() - 1));
  for (const Tensor* t : {&out, &dout})
    STD_TORCH_CHECK(sizes_of(*t) == out_sizes,
                    "tileattn: out and dout must have the shape of the result");
  std::int64_t rows = 1;
  for (std::int64_t n : rows_of(q)) rows *= n;
  STD_TORCH_CHECK(lse.numel() == rows && (!dlse || dlse->numel() == rows),
                  "tileattn: lse must be [batch, queries, heads]");
  check_type(lse, ScalarType::Float, "lse must be float32");
  check_type(dlse, ScalarType::Float, "dlse must be float32");

  in = readable(in);
  out = with_vector_rows(out);
  dout = with_vector_rows(dout);
  lse = torch::stable::contiguous(lse);
  dlse = contiguous(dlse);
  auto gradient_of = [&](const Tensor& t) {
    return new_result(t, rows_of(t, t.size(t.dim() - 1)), t.scalar_type(), is_packed(in));
  };
  Tensor dq = gradient_of(q), dk = gradient_of(k), dv = gradient_of(v);
  Tensor dbias = bias && bias_grad ? bias_gradient_buffer(in, deterministic)
                                   : new_result(q, {0}, ScalarType::Float);
  Tensor delta = new_result(q, rows_of(q), ScalarType::Float, is_packed(in));

  AttentionBackward problem;
  describe(in, problem);
  problem.out = const_ref(out);
  problem.dout = const_ref(dout);
  problem.lse = static_cast<const float*>(lse.data_ptr());
  LowParts low{out_low, lse_low};
  take_low_parts(low, out, lse, problem);
  problem.dlse = data_or_null<float>(dlse);
  problem.dq = ref(dq);
  problem.dk = ref(dk);
  problem.dv = ref(dv);
  if (bias && bias_grad) problem.dbias = bias_ref(dbias);
  problem.delta = static_cast<float*>(delta.data_ptr());
  problem.deterministic = deterministic;
  if (q.numel() > 0 || k.numel() > 0) run(problem, q);
  return {dq, dk, dv, dbias, delta};
}

}  // namespace
}  // namespace tileattn::torch_binding

STABLE_TORCH_LIBRARY_IMPL(TILEATTN_OP_NAMESPACE, CPU, library) {
  library.impl("attention_forward", TORCH_BOX(&tileattn::torch_binding::attention_forward));
  library.impl("attention_backward", TORCH_BOX(&tileattn::torch_binding::attention_backward));
}

#ifdef TILEATTN_HAS_CUDA
STABLE_TORCH_LIBRARY_IMPL(TILEATTN_OP_NAMESPACE, CUDA, library) {
  library.impl("attention_forward", TORCH_BOX(&tileattn::torch_binding::attention_forward));
  library.impl("attention_backward", TORCH_BOX(&tileattn::torch_binding::attention_backward));
}
#endif
