"""Sums over the window of every query, in plain PyTorch, one position of the window at a time.

Slot n of a query is the n-th key of its window, row-major. Three operators, each the derivative
of the other two:

    dot(q, k)[i, n]     = scale * q[i] . k[key of slot n]
    gather(w, v)[i]     = scale * sum over n of w[i, n] v[key of slot n]
    scatter(w, x)[j]    = scale * sum over the slots (i, n) whose key is j of w[i, n] x[i]

Slots beyond a causal query's window hold no key and give 0. They run on any device and dtype
(sums in float32 or wider, scaled before they are rounded), need no memory beyond their results, and
are opaque to torch.compile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tileattn._common import transforms
from tileattn._common.library import LIBRARY
from tileattn.neighborhood._checks import check_fit
from tileattn.reference.precision import exact_dtype

Ints = Sequence[int]


def axis_slots(
    length: int, window: int, stride: int, dilation: int, causal: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of one axis: the key of each slot, int64 [length, window], and whether there is one."""
    token = torch.arange(length, device=device)
    group, position = token % dilation, token // dilation
    group_length = (length - group + dilation - 1) // dilation
    first = position // stride * stride
    if causal:
        leader = torch.minimum(first + stride - 1, group_length - 1)
        start, end = (leader - window + 1).clamp(min=0), position + 1
    else:
        leader = torch.minimum(first + stride // 2, group_length - 1)
        start = torch.minimum((leader - window // 2).clamp(min=0), group_length - window)
        end = start + window
    key = start[:, None] + torch.arange(window, device=device)
    held = key < end[:, None]
    key = torch.where(held, key, position[:, None])  # somewhere on the axis
    return key * dilation + group[:, None], held


def slots(
    grid: Ints, spec: Sequence[Ints], device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Slot, key of each query in it [tokens], and where it holds one (None: everywhere)."""
    window, _, dilation, causal = spec
    check_fit(grid, window, dilation)
    axes = [
        axis_slots(length, w, s, d, c, device)
        for length, w, s, d, c in zip(grid, *spec, strict=True)
    ]
    any_causal = any(causal)
    for n, at in enumerate(itertools.product(*(range(w) for w in window))):
        key = torch.zeros(1, dtype=torch.int64, device=device)
        held = torch.ones(1, dtype=torch.bool, device=device)
        for length, (keys, there), position in zip(grid, axes, at, strict=True):
            key = (key[:, None] * length + keys[:, position]).flatten()
            held = (held[:, None] & there[:, position]).flatten()
        yield n, key, held if any_causal else None


def held_slots(grid: Ints, spec: Sequence[Ints], device: torch.device) -> Tensor:
    """bool [*grid, slots]: False for a causal query's slots without a key."""
    held = torch.ones(1, dtype=torch.bool, device=device)
    for length, w, s, d, c in zip(grid, *spec, strict=True):
        there = axis_slots(length, w, s, d, c, device)[1]
        held = (held[..., None, :, None] & there[:, None, :]).flatten(-2)
    return held


def _wide(tensor: Tensor, heads_kv: int) -> Tensor:
    """[B, tokens, heads, x] as [B, tokens, Hkv, heads / Hkv, x], half precision in float32."""
    wide: Tensor = tensor.to(exact_dtype(tensor.dtype)).unflatten(2, (heads_kv, -1))
    return wide


def _mask(held: Tensor | None, values: Tensor) -> Tensor:
    """Zeroes values [B, tokens, ...] where there is no key."""
    if held is None:
        return values
    return values.masked_fill(~held.view(1, -1, *[1] * (values.dim() - 2)), 0.0)


_SPEC = (
    "float scale, SymInt[] grid, SymInt[] window, SymInt[] stride, SymInt[] dilation, "
    "SymInt[] causal"
)
SCHEMAS = (
    f"stencil_dot(Tensor q, Tensor k, {_SPEC}) -> Tensor",
    f"stencil_gather(Tensor weights, Tensor v, {_SPEC}) -> Tensor",
    f"stencil_scatter(Tensor weights, Tensor x, SymInt heads_kv, {_SPEC}) -> Tensor",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

#: [B, tokens, Hq, slots] of q [B, tokens, Hq, D] and k [B, tokens, Hkv, D].
dot = torch.ops.tileattn.stencil_dot.default
#: [B, tokens, Hq, Dv] of weights [B, tokens, Hq, slots] and v [B, tokens, Hkv, Dv].
gather = torch.ops.tileattn.stencil_gather.default
#: [B, tokens, Hkv, D] of weights [B, tokens, Hq, slots], x [B, tokens, Hq, D] and heads_kv.
scatter = torch.ops.tileattn.stencil_scatter.default


def _dot(q: Tensor, k: Tensor, scale: float, grid: Ints, *spec: Ints) -> Tensor:
    wide_q, wide_k = _wide(q, k.shape[2]), _wide(k, k.shape[2])
    found = [
        _mask(held, (wide_q * wide_k[:, key]).sum(-1)).flatten(2)
        for _, key, held in slots(grid, spec, q.device)
    ]
    return (scale * torch.stack(found, -1)).to(q.dtype)


def _gather(weights: Tensor, v: Tensor, scale: float, grid: Ints, *spec: Ints) -> Tensor:
    wide_w, wide_v = _wide(weights, v.shape[2]), _wide(v, v.shape[2])
    out = wide_v.new_zeros(*wide_w.shape[:-1], v.shape[-1])
    for n, key, held in slots(grid, spec, v.device):
        out += _mask(held, wide_w[..., n, None]) * wide_v[:, key]
    return (scale * out).flatten(2, 3).to(v.dtype)


def _scatter(
    weights: Tensor, x: Tensor, heads_kv: int, scale: float, grid: Ints, *spec: Ints
) -> Tensor:
    wide_w, wide_x = _wide(weights, heads_kv), _wide(x, heads_kv)
    out = wide_x.new_zeros(*x.shape[:2], heads_kv, x.shape[-1])
    for n, key, held in slots(grid, spec, x.device):
        out.index_add_(1, key, (_mask(held, wide_w[..., n, None]) * wide_x).sum(3))
    return (scale * out).to(x.dtype)


def _fake_dot(q: Tensor, k: Tensor, scale: float, grid: Ints, window: Ints, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], math.prod(window))


def _fake_gather(weights: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(*weights.shape[:3], v.shape[-1])


def _fake_scatter(weights: Tensor, x: Tensor, heads_kv: int, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], heads_kv, x.shape[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, *ctx.options = inputs
    transforms.save(ctx, a, b)


def _dot_backward(ctx: Any, grad: Tensor) -> dict[str, Tensor | None]:
    q, k = ctx.saved_tensors
    spec = ctx.options
    dq = gather(grad, k, *spec) if "q" in ctx.needs else None
    dk = scatter(grad, q, k.shape[2], *spec) if "k" in ctx.needs else None
    return {"q": dq, "k": dk}


def _gather_backward(ctx: Any, grad: Tensor) -> dict[str, Tensor | None]:
    weights, v = ctx.saved_tensors
    spec = ctx.options
    dw = dot(grad, v, *spec).to(weights.dtype) if "weights" in ctx.needs else None
    dv = scatter(weights, grad, v.shape[2], *spec) if "v" in ctx.needs else None
    return {"weights": dw, "v": dv}


def _scatter_backward(ctx: Any, grad: Tensor) -> dict[str, Tensor | None]:
    weights, x = ctx.saved_tensors
    _, *spec = ctx.options
    dw = dot(x, grad, *spec).to(weights.dtype) if "weights" in ctx.needs else None
    dx = gather(weights, grad, *spec) if "x" in ctx.needs else None
    return {"weights": dw, "x": dx}


def _jvp_of(op: Any) -> Any:
    """Each of the three is linear in both of its tensors."""

    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, *_: Any) -> Any:
        a, b = transforms.primals(ctx)
        pairs = ((da, b), (a, db))
        parts = [op(x, y, *ctx.options) for x, y in pairs if x is not None and y is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    return jvp


for _op, _kernel, _fake, _backward in (
    (dot, _dot, _fake_dot, _dot_backward),
    (gather, _gather, _fake_gather, _gather_backward),
    (scatter, _scatter, _fake_scatter, _scatter_backward),
):
    _name = _op._schema.name.removeprefix("tileattn::")
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(_op, _fake, lib=LIBRARY)
    transforms.register(LIBRARY, _name, _save, _backward, _jvp_of(_op))
