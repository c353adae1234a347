"""The raw operators of dense attention: schemas, fake kernels, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn._common import transforms as _transforms
from tileattn._common.library import LIBRARY
from tileattn._common.softmax_tangent import Pair, tangent
from tileattn.capabilities import MAX_HEAD_DIM

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, {state}Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, float scale, float softcap, SymInt window_left, "
    "SymInt window_right, SymInt sink_tokens, bool causal, bool deterministic"
)
#: What a forward of softmax attention returns, and its backward takes. The low parts are what
#: rounding takes from out and lse; empty unless ``low_parts``, which gradients ask for.
RESULTS = "Tensor out, Tensor lse, Tensor out_low, Tensor lse_low"
SCHEMAS = (
    f"attention_forward({_INPUTS.format(state='')}, bool low_parts) -> ({RESULTS})",
    "attention_backward(Tensor dout, Tensor? dlse, "
    + _INPUTS.format(state=f"{RESULTS}, ")
    + ", bool bias_grad) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor delta)",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

_FORWARD = torch.ops.tileattn.attention_forward.default
_BACKWARD = torch.ops.tileattn.attention_backward.default
#: Positions of the forward's arguments that are tensors; the rest are plain numbers.
_TENSORS = 8


def forward(op: Any, tensors: tuple[Tensor | None, ...], *options: Any) -> tuple[Tensor, Tensor]:
    """out and lse, with all that a gradient needs where one may be asked for."""
    low_parts = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, lse, _, _ = _transforms.call(op, *tensors, *options, low_parts)
    return out, lse


def fake_results(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """What a forward with these arguments returns, without values."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    low_parts = rest[-1]
    rounded = low_parts and q.dtype != torch.float32
    return (
        out,
        lse,
        out.new_empty(out.shape if rounded else 0, dtype=torch.int8),
        lse.new_empty(lse.shape if low_parts else 0),
    )


torch.library.register_fake("tileattn::attention_forward", fake_results, lib=LIBRARY)


@torch.library.register_fake("tileattn::attention_backward", lib=LIBRARY)
def _fake_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    out_low: Tensor,
    lse_low: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    deterministic, bias_grad = rest[-2:]
    if bias is None or not bias_grad:
        shape: tuple[int, ...] = (0,)
    elif deterministic:  # batch and heads kept apart: no two blocks add to one element
        shape = (q.shape[0], q.shape[2], bias.shape[2], bias.shape[3])
    else:
        shape = tuple(bias.shape)
    gradients = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    return (
        *gradients,
        q.new_empty(shape, dtype=torch.float32),
        q.new_empty(q.shape[:-1], dtype=torch.float32),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _transforms.save(ctx, *inputs[:_TENSORS], *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.options = inputs[_TENSORS:-1]


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Any, ...]:
    q, k, v, bias, slopes, sinks, cu_q, cu_k, out, lse, out_low, lse_low = ctx.saved_tensors
    need_bias, need_sinks = ctx.needs_input_grad[3], ctx.needs_input_grad[5]
    gradients: list[Tensor | None] = [None] * (_TENSORS + len(ctx.options) + 1)
    if dout is None:
        dout = torch.zeros_like(out)
    if dlse is not None:  # may be NaN where lse is -inf, e.g. behind a difference of two lse
        dlse = dlse.masked_fill(lse == -torch.inf, 0.0)
    kept, given = (out, lse, out_low, lse_low), (bias, slopes, sinks, cu_q, cu_k)
    dq, dk, dv, dbias, delta = _transforms.call(
        _BACKWARD, dout, dlse, q, k, v, *kept, *given, *ctx.options, need_bias
    )
    for n, gradient in enumerate((dq, dk, dv)):
        gradients[n] = gradient if ctx.needs_input_grad[n] else None
    if need_bias:
        gradients[3] = dbias.sum_to_size(bias.shape).to(bias.dtype)
    if need_sinks:
        gradients[5] = -(_sink_weights(sinks, lse, lse_low) * delta).flatten(0, -2).sum(0)
    return tuple(gradients)


def _sink_weights(sinks: Tensor, lse: Tensor, lse_low: Tensor) -> Tensor:
    """A sink adds exp(sink) to the sum of each row and no value.

    Rows outside of every packed sequence have lse -inf and no sink either.
    """
    distance = sinks - lse - lse_low if lse_low.numel() else sinks - lse
    return torch.exp(distance).masked_fill(lse == -torch.inf, 0.0)


def _jvp(
    ctx: Any,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dbias: Tensor | None,
    dslopes: Tensor | None,
    dsinks: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    q, k, v, bias, slopes, sinks, cu_q, cu_k = _transforms.primals(ctx)[:_TENSORS]
    scale, softcap, *_ = ctx.options
    for name, found in (("bias", dbias), ("alibi_slopes", dslopes)):
        if found is not None:
            _transforms.refuse_tangent(f"in {name}")
    if softcap != 0 and not (dq is None and dk is None):
        _transforms.refuse_tangent("in q and k with softcap")
    rest = (bias, slopes, sinks, cu_q, cu_k, *ctx.options)

    def forward(q: Tensor, keys: Pair, values: Pair) -> Any:
        return _FORWARD(q, keys[0], values[0], *rest, True)

    def backward(dout: Tensor, q: Tensor, keys: Pair, values: Pair, *results: Tensor) -> Any:
        return _BACKWARD(dout, None, q, keys[0], values[0], *results, *rest, False)[0]

    primals, tangents = (q, (k, None), (v, None)), (dq, (dk, None), (dv, None))
    dout, dlse = tangent(forward, backward, primals, tangents, scale, MAX_HEAD_DIM)
    if dsinks is not None:  # one more logit without a value; what was saved has no low parts
        out, lse, _, lse_low = forward(q, (k, None), (v, None))
        more = _sink_weights(sinks, lse, lse_low) * dsinks
        dlse = dlse + more
        dout = dout - (more.unsqueeze(-1) * out).to(out.dtype)
    return dout, dlse, None, None


_transforms.register(LIBRARY, "attention_forward", _setup_context, _backward, _jvp)
_transforms.register_last(LIBRARY, "attention_backward")
