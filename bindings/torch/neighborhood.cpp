// torch.ops.tileattn.neighborhood_forward / neighborhood_backward on torch's stable ABI.
// Python validates for people; the checks here guard memory only.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "low_parts.h"
#include "run.h"
#include "tensors.h"
#include "tileattn/attention.h"

namespace tileattn::torch_binding {
namespace {

using Ints = std::vector<std::int64_t>;

/// Everything forward and backward share, as the ops receive it.
struct Inputs {
  Tensor q, k, v;  // [batch, *grid, heads, dim]
  OptionalTensor extra_k, extra_v;
  Ints window, stride, dilation, causal, offset;
  bool clip;
  double scale;

  std::int64_t rank() const { return q.dim() - 3; }
};

/// The sizes of `like` with another last dimension.
Ints sizes_with(const Tensor& like, std::int64_t last) {
  Ints sizes = sizes_of(like);
  sizes.back() = last;
  return sizes;
}

Ints rows_of(const Tensor& q) { return {q.sizes().begin(), q.sizes().end() - 1}; }

void check_spec(const Inputs& in) {
  const std::int64_t rank = in.rank();
  for (const Ints* values : {&in.window, &in.stride, &in.dilation, &in.causal, &in.offset})
    STD_TORCH_CHECK(
        static_cast<std::int64_t>(values->size()) == rank,
        "tileattn: window, stride, dilation, causal and offset need one entry per axis");
  for (std::int64_t a = 0; a < rank; ++a) {
    const std::int64_t length = in.q.size(1 + a), limit = 1 << 29;
    STD_TORCH_CHECK(in.window[a] >= 1 && in.window[a] < limit, "tileattn: bad window");
    STD_TORCH_CHECK(in.stride[a] >= 1 && in.stride[a] <= in.window[a], "tileattn: bad stride");
    STD_TORCH_CHECK(in.dilation[a] >= 1 && in.dilation[a] <= std::max<std::int64_t>(length, 1),
                    "tileattn: bad dilation");
    STD_TORCH_CHECK(in.clip || length == 0 || in.window[a] * in.dilation[a] <= length,
                    "tileattn: the window is longer than the axis");
    STD_TORCH_CHECK(in.offset[a] >= 0 && in.offset[a] < in.stride[a], "tileattn: bad offset");
  }
}

void check(const Inputs& in) {
  const std::int64_t rank = in.rank(), head = rank + 1, dim = rank + 2;
  STD_TORCH_CHECK(rank >= 1 && rank <= NeighborhoodSpec::kMaxRank,
                  "tileattn: q must be [batch, *grid, heads, dim] with one to three grid axes");
  STD_TORCH_CHECK(in.k.dim() == in.q.dim() && in.v.dim() == in.q.dim(),
                  "tileattn: q, k and v must have one rank");
  std::int64_t tokens = 1;
  for (std::int64_t a = 0; a <= rank; ++a) {
    STD_TORCH_CHECK(in.k.size(a) == in.q.size(a) && in.v.size(a) == in.q.size(a),
                    "tileattn: q, k and v must agree in batch and grid");
    if (a > 0) tokens *= in.q.size(a);
    STD_TORCH_CHECK(tokens < (1 << 29), "tileattn: grid too large");
  }
  STD_TORCH_CHECK(in.k.size(head) == in.v.size(head), "tileattn: k and v must agree in heads");
  STD_TORCH_CHECK(in.q.size(dim) == in.k.size(dim), "tileattn: q and k must agree in dim");
  STD_TORCH_CHECK(in.k.size(head) > 0 && in.q.size(head) % in.k.size(head) == 0,
                  "tileattn: heads of k must divide heads of q");
  for (std::int64_t d : {in.q.size(dim), in.v.size(dim)})
    STD_TORCH_CHECK(d > 0 && d % 8 == 0 && d <= 256, "tileattn: unsupported head dim ", d);
  STD_TORCH_CHECK(
      in.q.scalar_type() == in.k.scalar_type() && in.q.scalar_type() == in.v.scalar_type(),
      "tileattn: q, k and v must have one dtype");
  check_spec(in);
  STD_TORCH_CHECK(in.extra_k.has_value() == in.extra_v.has_value(),
                  "tileattn: extra_keys and extra_values go together");
  if (!in.extra_k) return;
  auto fits = [&](const Tensor& extra, const Tensor& like) {
    return extra.dim() == 4 && extra.size(0) == in.q.size(0) &&
           extra.size(1) == in.extra_k->size(1) && extra.size(1) < (1 << 29) &&
           extra.size(2) == like.size(head) && extra.size(3) == like.size(dim) &&
           extra.scalar_type() == in.q.scalar_type();
  };
  STD_TORCH_CHECK(fits(*in.extra_k, in.k) && fits(*in.extra_v, in.v),
                  "tileattn: extra_keys and extra_values must be [batch, extra, heads, dim]");
}

/// Makes every tensor readable by the kernels, copying only where it is not.
Inputs readable(Inputs in) {
  in.q = with_vector_rows(in.q);
  in.k = with_vector_rows(in.k);
  in.v = with_vector_rows(in.v);
  if (in.extra_k) {
    in.extra_k = with_vector_rows(*in.extra_k);
    in.extra_v = with_vector_rows(*in.extra_v);
  }
  return in;
}

/// [batch, *grid, head, dim]
TensorRef grid_ref(const Tensor& tensor) {
  const std::int64_t rank = tensor.dim() - 3;
  auto axis = [&](std::int64_t from_last) {
    return from_last < rank ? step(tensor, rank - from_last) : 0;
  };
  return {tensor.data_ptr(), step(tensor, 0), axis(0), step(tensor, rank + 1), {axis(2), axis(1)}};
}

ConstTensorRef const_grid_ref(const Tensor& tensor) {
  const TensorRef r = grid_ref(tensor);
  return {r.data,
          r.batch_stride,
          r.token_stride,
          r.head_stride,
          {r.outer_stride[0], r.outer_stride[1]}};
}

NeighborhoodSpec spec_of(const Inputs& in) {
  NeighborhoodSpec spec;
  spec.rank = static_cast<int>(in.rank());
  spec.clip = in.clip;
  for (int a = 0; a < spec.rank; ++a) {
    auto number = [a](const Ints& values) { return static_cast<int>(values[a]); };
    spec.axis[NeighborhoodSpec::kMaxRank - spec.rank + a] = {static_cast<int>(in.q.size(1 + a)),
                                                             number(in.window),
                                                             number(in.stride),
                                                             number(in.dilation),
                                                             number(in.offset),
                                                             in.causal[a] != 0};
  }
  return spec;
}

/// Fills the shared part of a problem; `in` has passed check() and readable().
void describe(const Inputs& in, AttentionProblem& problem) {
  const std::int64_t head = in.rank() + 1;
  auto size = [](const Tensor& t, std::int64_t dim) { return static_cast<int>(t.size(dim)); };
  problem.neighborhood = spec_of(in);
  problem.dtype = dtype_of(in.q);
  problem.batch = size(in.q, 0);
  problem.heads_q = size(in.q, head);
  problem.heads_kv = size(in.k, head);
  problem.dim = size(in.q, head + 1);
  problem.dim_v = size(in.v, head + 1);
  problem.len_q = 1;
  for (const auto& axis : problem.neighborhood.axis) problem.len_q *= axis.length;
  problem.len_k = problem.len_q;
  problem.q = const_grid_ref(in.q);
  problem.k = const_grid_ref(in.k);
  problem.v = const_grid_ref(in.v);
  problem.scale = static_cast<float>(in.scale);
  if (in.extra_k) {
    problem.extra_keys = size(*in.extra_k, 1);
    problem.extra_k = const_ref(*in.extra_k);
    problem.extra_v = const_ref(*in.extra_v);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> neighborhood_forward(
    Tensor q, Tensor k, Tensor v, OptionalTensor extra_k, OptionalTensor extra_v, Ints window,
    Ints stride, Ints dilation, Ints causal, Ints offset, bool clip, double scale,
    bool /*deterministic: the forward always is*/, bool low_parts) {
  Inputs in{q, k, v, extra_k, extra_v, window, stride, dilation, causal, offset, clip, scale};
  check(in);
  in = readable(in);
  Tensor out = new_result(q, sizes_with(q, v.size(v.dim() - 1)), q.scalar_type());
  Tensor lse = new_result(q, rows_of(q), ScalarType::Float);
  AttentionForward problem;
  describe(in, problem);
  problem.out = grid_ref(out);
  problem.lse = static_cast<float*>(lse.data_ptr());
  LowParts low = new_low_parts(out, lse, low_parts, false, problem);
  if (out.numel() > 0) run(problem, q);
  return {out, lse, low.out, low.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> neighborhood_backward(
    Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
    Tensor out_low, Tensor lse_low, OptionalTensor extra_k, OptionalTensor extra_v, Ints window,
    Ints stride, Ints dilation, Ints causal, Ints offset, bool clip, double scale,
    bool deterministic) {
  Inputs in{q, k, v, extra_k, extra_v, window, stride, dilation, causal, offset, clip, scale};
  check(in);
  const Ints out_sizes = sizes_with(q, v.size(v.dim() - 1));
  for (const Tensor* t : {&out, &dout})
    STD_TORCH_CHECK(sizes_of(*t) == out_sizes && t->scalar_type() == q.scalar_type(),
                    "tileattn: out and dout must have the shape and dtype of the result");
  STD_TORCH_CHECK(sizes_of(lse) == rows_of(q) && (!dlse || sizes_of(*dlse) == rows_of(q)),
                  "tileattn: lse must be [batch, *grid, heads]");
  STD_TORCH_CHECK(
      lse.scalar_type() == ScalarType::Float && (!dlse || dlse->scalar_type() == ScalarType::Float),
      "tileattn: lse must be float32");

  in = readable(in);
  out = with_vector_rows(out);
  dout = with_vector_rows(dout);
  lse = torch::stable::contiguous(lse);
  dlse = contiguous(dlse);
  auto gradient_of = [](const Tensor& t) { return new_result(t, sizes_of(t), t.scalar_type()); };
  Tensor dq = gradient_of(q), dk = gradient_of(k), dv = gradient_of(v);
  auto extra_gradient = [&](const OptionalTensor& extra) {
    return extra ? gradient_of(*extra) : new_result(q, {0}, q.scalar_type());
  };
  Tensor dextra_k = extra_gradient(extra_k), dextra_v = extra_gradient(extra_v);
  Tensor delta = new_result(q, rows_of(q), ScalarType::Float);

  AttentionBackward problem;
  describe(in, problem);
  problem.out = const_grid_ref(out);
  problem.dout = const_grid_ref(dout);
  problem.lse = static_cast<const float*>(lse.data_ptr());
  LowParts low{out_low, lse_low};
  take_low_parts(low, out, lse, problem);
  problem.dlse = data_or_null<float>(dlse);
  problem.dq = grid_ref(dq);
  problem.dk = grid_ref(dk);
  problem.dv = grid_ref(dv);
  if (extra_k) {
    problem.dextra_k = ref(dextra_k);
    problem.dextra_v = ref(dextra_v);
  }
  problem.delta = static_cast<float*>(delta.data_ptr());
  problem.deterministic = deterministic;
  if (q.numel() > 0) {
    run(problem, q);
  } else {
    torch::stable::fill_(dextra_k, 0.0);
    torch::stable::fill_(dextra_v, 0.0);
  }
  return {dq, dk, dv, dextra_k, dextra_v};
}

}  // namespace
}  // namespace tileattn::torch_binding

STABLE_TORCH_LIBRARY_IMPL(TILEATTN_OP_NAMESPACE, CPU, library) {
  library.impl("neighborhood_forward", TORCH_BOX(&tileattn::torch_binding::neighborhood_forward));
  library.impl("neighborhood_backward", TORCH_BOX(&tileattn::torch_binding::neighborhood_backward));
}

#ifdef TILEATTN_HAS_CUDA
STABLE_TORCH_LIBRARY_IMPL(TILEATTN_OP_NAMESPACE, CUDA, library) {
  library.impl("neighborhood_forward", TORCH_BOX(&tileattn::torch_binding::neighborhood_forward));
  library.impl("neighborhood_backward", TORCH_BOX(&tileattn::torch_binding::neighborhood_backward));
}
#endif
