"""The raw operators of neighborhood attention: schemas, fake kernels, gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tileattn._common import softmax, transforms
from tileattn._common.library import LIBRARY
from tileattn._common.softmax_tangent import Pair, tangent
from tileattn.capabilities import CUDA_GRID_HEAD_DIM, MAX_HEAD_DIM


class Tensors(NamedTuple):
    """Of a call, in the order of the schemas."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra_keys: Tensor | None = None
    extra_values: Tensor | None = None


_OTHERS = (
    f"{softmax.optional_tensors(Tensors)}, SymInt[] window, SymInt[] stride, SymInt[] dilation, "
    "int[] causal, SymInt[] offset, bool clip, float scale, bool deterministic"
)
SCHEMAS = (
    f"neighborhood_forward(Tensor q, Tensor k, Tensor v, {_OTHERS}, bool low_parts) "
    f"-> ({softmax.RESULTS})",
    "neighborhood_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, "
    f"{softmax.RESULTS}, {_OTHERS}) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dextra_keys, Tensor dextra_values)",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

FORWARD = torch.ops.tileattn.neighborhood_forward.default
_BACKWARD = torch.ops.tileattn.neighborhood_backward.default

torch.library.register_fake("tileattn::neighborhood_forward", softmax.fake_results, lib=LIBRARY)


@torch.library.register_fake("tileattn::neighborhood_backward", lib=LIBRARY)
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
    extra_keys: Tensor | None,
    extra_values: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    extra = (q.new_empty(0 if t is None else t.shape) for t in (extra_keys, extra_values))
    return (*(t.new_empty(t.shape) for t in (q, k, v)), *extra)


def _backward(
    ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: None
) -> dict[str, Tensor | None]:
    kept = ctx.saved_tensors
    _q, _k, _v, out, *_ = kept
    if dout is None:
        dout = torch.zeros_like(out)
    found = transforms.call(_BACKWARD, dout, dlse, *kept, *ctx.settings)
    return dict(zip(Tensors._fields, found, strict=True))


def _jvp(
    ctx: Any,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dextra_keys: Tensor | None,
    dextra_values: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    tensors, _results = softmax.without_results(Tensors, transforms.primals(ctx))
    *_, scale, _deterministic = ctx.settings

    def forward(q: Tensor, keys: Pair, values: Pair) -> Any:
        return FORWARD(*_seen(q, keys, values), *ctx.settings, True)

    def backward(dout: Tensor, q: Tensor, keys: Pair, values: Pair, *results: Tensor) -> Any:
        given = softmax.with_results(_seen(q, keys, values), results)
        dq, *_ = _BACKWARD(dout, None, *given, *ctx.settings)
        return dq

    primals = tensors.q, (tensors.k, tensors.extra_keys), (tensors.v, tensors.extra_values)
    tangents = dq, (dk, dextra_keys), (dv, dextra_values)
    limit = CUDA_GRID_HEAD_DIM if tensors.q.is_cuda else MAX_HEAD_DIM
    return *tangent(forward, backward, primals, tangents, scale, limit), None, None


def _seen(q: Tensor, keys: Pair, values: Pair) -> Tensors:
    (k, extra_keys), (v, extra_values) = keys, values
    return Tensors(q, k, v, extra_keys, extra_values)


transforms.register(LIBRARY, "neighborhood_forward", softmax.keeping(Tensors), _backward, _jvp)
transforms.register_last(LIBRARY, "neighborhood_backward")
