"""The raw operators of dense attention: schemas, fake kernels, gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tileattn._common import softmax, transforms
from tileattn._common.library import LIBRARY
from tileattn._common.softmax_tangent import Pair, tangent
from tileattn.capabilities import MAX_HEAD_DIM


class Tensors(NamedTuple):
    """Of a call, in the order of the schemas."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None


class Settings(NamedTuple):
    """The plain arguments of a call, in the order of the schemas; a window of -1 is unlimited."""

    scale: float
    softcap: float
    window_left: int
    window_right: int
    sink_tokens: int
    causal: bool
    deterministic: bool


_OTHERS = (
    f"{softmax.optional_tensors(Tensors)}, float scale, float softcap, SymInt window_left, "
    "SymInt window_right, SymInt sink_tokens, bool causal, bool deterministic"
)
SCHEMAS = (
    f"attention_forward(Tensor q, Tensor k, Tensor v, {_OTHERS}, bool low_parts) "
    f"-> ({softmax.RESULTS})",
    "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, "
    f"{softmax.RESULTS}, {_OTHERS}, bool bias_grad) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor delta)",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

FORWARD = torch.ops.tileattn.attention_forward.default
_BACKWARD = torch.ops.tileattn.attention_backward.default

torch.library.register_fake("tileattn::attention_forward", softmax.fake_results, lib=LIBRARY)


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
    *_, deterministic, bias_grad = rest
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


def _backward(
    ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: None
) -> dict[str, Tensor | None]:
    kept = ctx.saved_tensors
    _q, _k, _v, out, lse, _out_low, lse_low, bias, _slopes, sinks, *_ = kept
    if dout is None:
        dout = torch.zeros_like(out)
    if dlse is not None:  # may be NaN where lse is -inf, e.g. behind a difference of two lse
        dlse = dlse.masked_fill(lse == -torch.inf, 0.0)
    options = (*ctx.settings, "bias" in ctx.needs)
    dq, dk, dv, dbias, delta = transforms.call(_BACKWARD, dout, dlse, *kept, *options)
    gradients = {"q": dq, "k": dk, "v": dv}
    if "bias" in ctx.needs:
        gradients["bias"] = dbias.sum_to_size(bias.shape).to(bias.dtype)
    if "sinks" in ctx.needs:
        gradients["sinks"] = -(_sink_weights(sinks, lse, lse_low) * delta).flatten(0, -2).sum(0)
    return gradients


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
    tensors, _results = softmax.without_results(Tensors, transforms.primals(ctx))
    settings = Settings(*ctx.settings)
    for name, found in (("bias", dbias), ("alibi_slopes", dslopes)):
        if found is not None:
            transforms.refuse_tangent(f"in {name}")
    if settings.softcap != 0 and not (dq is None and dk is None):
        transforms.refuse_tangent("in q and k with softcap")

    def forward(q: Tensor, keys: Pair, values: Pair) -> Any:
        return FORWARD(*tensors._replace(q=q, k=keys[0], v=values[0]), *settings, True)

    def backward(dout: Tensor, q: Tensor, keys: Pair, values: Pair, *results: Tensor) -> Any:
        seen = tensors._replace(q=q, k=keys[0], v=values[0])
        given = softmax.with_results(seen, results)
        dq, *_ = _BACKWARD(dout, None, *given, *settings, False)
        return dq

    primals = (tensors.q, (tensors.k, None), (tensors.v, None))
    tangents = (dq, (dk, None), (dv, None))
    dout, dlse = tangent(forward, backward, primals, tangents, settings.scale, MAX_HEAD_DIM)
    if dsinks is not None:  # one more logit without a value; what was saved has no low parts
        out, lse, _, lse_low = forward(*primals)
        more = _sink_weights(tensors.sinks, lse, lse_low) * dsinks
        dlse = dlse + more
        dout = dout - (more.unsqueeze(-1) * out).to(out.dtype)
    return dout, dlse, None, None


transforms.register(LIBRARY, "attention_forward", softmax.keeping(Tensors), _backward, _jvp)
transforms.register_last(LIBRARY, "attention_backward")
