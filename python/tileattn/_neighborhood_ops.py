"""The raw operators of neighborhood attention: schemas, fake kernels, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn import _ops

_SPEC = (
    "Tensor? extra_keys, Tensor? extra_values, int[] window, int[] stride, int[] dilation, "
    "int[] causal, int[] offset, bool clip, float scale, bool deterministic"
)
SCHEMAS = (
    f"neighborhood_forward(Tensor q, Tensor k, Tensor v, {_SPEC}, bool low_parts) "
    f"-> ({_ops.RESULTS})",
    "neighborhood_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, "
    f"{_ops.RESULTS}, {_SPEC}) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dextra_keys, Tensor dextra_values)",
)
for _schema in SCHEMAS:
    _ops._LIBRARY.define(_schema)

_BACKWARD = torch.ops.tileattn.neighborhood_backward
#: Positions of the forward's arguments that are tensors.
_TENSORS = 5


torch.library.register_fake("tileattn::neighborhood_forward", _ops.fake_results, lib=_ops._LIBRARY)


@torch.library.register_fake("tileattn::neighborhood_backward", lib=_ops._LIBRARY)
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
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.options = inputs[_TENSORS:-1]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs, kept = saved[:_TENSORS], saved[_TENSORS:]
    rest = (None,) * (len(ctx.options) + 1)
    if dout is None and dlse is None:
        return (None,) * _TENSORS + rest
    if dout is None:
        dout = torch.zeros_like(kept[0])
    found = _BACKWARD(dout, dlse, *inputs[:3], *kept, *inputs[3:], *ctx.options)
    wanted = zip(found, ctx.needs_input_grad, strict=False)
    return tuple(gradient if needed else None for gradient, needed in wanted) + rest


torch.library.register_autograd(
    "tileattn::neighborhood_forward", _backward, setup_context=_setup_context, lib=_ops._LIBRARY
)
torch.library.register_autograd(
    "tileattn::neighborhood_backward", _ops._no_second_derivative, lib=_ops._LIBRARY
)
for _name in ("neighborhood_forward", "neighborhood_backward"):
    torch.library.register_vmap(f"tileattn::{_name}", _ops._no_vmap, lib=_ops._LIBRARY)
