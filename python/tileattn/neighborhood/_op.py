"""The raw operators of neighborhood attention: schemas, fake kernels, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn._common import transforms
from tileattn._common.library import LIBRARY
from tileattn._common.softmax_tangent import Pair, tangent
from tileattn.capabilities import CUDA_GRID_HEAD_DIM, MAX_HEAD_DIM
from tileattn.dense import _op as _ops

_SPEC = (
    "Tensor? extra_keys, Tensor? extra_values, SymInt[] window, SymInt[] stride, "
    "SymInt[] dilation, int[] causal, SymInt[] offset, bool clip, float scale, bool deterministic"
)
SCHEMAS = (
    f"neighborhood_forward(Tensor q, Tensor k, Tensor v, {_SPEC}, bool low_parts) "
    f"-> ({_ops.RESULTS})",
    "neighborhood_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, "
    f"{_ops.RESULTS}, {_SPEC}) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dextra_keys, Tensor dextra_values)",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

FORWARD = torch.ops.tileattn.neighborhood_forward.default
_BACKWARD = torch.ops.tileattn.neighborhood_backward.default
#: Positions of the forward's arguments that are tensors.
_TENSORS = 5


torch.library.register_fake("tileattn::neighborhood_forward", _ops.fake_results, lib=LIBRARY)


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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    transforms.save(ctx, *inputs[:_TENSORS], *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.options = inputs[_TENSORS:-1]


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs, kept = saved[:_TENSORS], saved[_TENSORS:]
    if dout is None:
        dout = torch.zeros_like(kept[0])
    found = transforms.call(_BACKWARD, dout, dlse, *inputs[:3], *kept, *inputs[3:], *ctx.options)
    wanted = zip(found, ctx.needs_input_grad, strict=False)
    rest = (None,) * (len(ctx.options) + 1)
    return tuple(gradient if needed else None for gradient, needed in wanted) + rest


def _jvp(
    ctx: Any,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dextra_keys: Tensor | None,
    dextra_values: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    q, k, v, extra_keys, extra_values = transforms.primals(ctx)[:_TENSORS]
    scale = ctx.options[-2]

    def forward(q: Tensor, keys: Pair, values: Pair) -> Any:
        return FORWARD(q, keys[0], values[0], keys[1], values[1], *ctx.options, True)

    def backward(dout: Tensor, q: Tensor, keys: Pair, values: Pair, *results: Tensor) -> Any:
        tensors = (q, keys[0], values[0], *results, keys[1], values[1])
        return _BACKWARD(dout, None, *tensors, *ctx.options)[0]

    primals = q, (k, extra_keys), (v, extra_values)
    tangents = dq, (dk, dextra_keys), (dv, dextra_values)
    limit = CUDA_GRID_HEAD_DIM if q.is_cuda else MAX_HEAD_DIM
    return *tangent(forward, backward, primals, tangents, scale, limit), None, None


transforms.register(LIBRARY, "neighborhood_forward", _setup_context, _backward, _jvp)
transforms.register_last(LIBRARY, "neighborhood_backward")
