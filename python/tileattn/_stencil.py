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
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

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
    window, _, _, causal = spec
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
    """bool [tokens, slots]: False for a causal query's slots without a key."""
    held = torch.ones(1, 1, dtype=torch.bool, device=device)
    for length, w, s, d, c in zip(grid, *spec, strict=True):
        there = axis_slots(length, w, s, d, c, device)[1]
        held = (held[:, None, :, None] & there[None, :, None, :]).flatten(0, 1).flatten(1, 2)
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


@torch.library.custom_op("tileattn::stencil_dot", mutates_args=())
def dot(
    q: Tensor,
    k: Tensor,
    scale: float,
    grid: Ints,
    window: Ints,
    stride: Ints,
    dilation: Ints,
    causal: Ints,
) -> Tensor:
    """[B, tokens, Hq, slots] of q [B, tokens, Hq, D] and k [B, tokens, Hkv, D]."""
    wide_q, wide_k = _wide(q, k.shape[2]), _wide(k, k.shape[2])
    spec = (window, stride, dilation, causal)
    found = [
        _mask(held, (wide_q * wide_k[:, key]).sum(-1)).flatten(2)
        for _, key, held in slots(grid, spec, q.device)
    ]
    return (scale * torch.stack(found, -1)).to(q.dtype)


@torch.library.custom_op("tileattn::stencil_gather", mutates_args=())
def gather(
    weights: Tensor,
    v: Tensor,
    scale: float,
    grid: Ints,
    window: Ints,
    stride: Ints,
    dilation: Ints,
    causal: Ints,
) -> Tensor:
    """[B, tokens, Hq, Dv] of weights [B, tokens, Hq, slots] and v [B, tokens, Hkv, Dv]."""
    wide_w, wide_v = _wide(weights, v.shape[2]), _wide(v, v.shape[2])
    out = wide_v.new_zeros(*wide_w.shape[:-1], v.shape[-1])
    for n, key, held in slots(grid, (window, stride, dilation, causal), v.device):
        out += _mask(held, wide_w[..., n, None]) * wide_v[:, key]
    return (scale * out).flatten(2, 3).to(v.dtype)


@torch.library.custom_op("tileattn::stencil_scatter", mutates_args=())
def scatter(
    weights: Tensor,
    x: Tensor,
    heads_kv: int,
    scale: float,
    grid: Ints,
    window: Ints,
    stride: Ints,
    dilation: Ints,
    causal: Ints,
) -> Tensor:
    """[B, tokens, Hkv, D] of weights [B, tokens, Hq, slots] and x [B, tokens, Hq, D]."""
    wide_w, wide_x = _wide(weights, heads_kv), _wide(x, heads_kv)
    out = wide_x.new_zeros(*x.shape[:2], heads_kv, x.shape[-1])
    for n, key, held in slots(grid, (window, stride, dilation, causal), x.device):
        out.index_add_(1, key, (_mask(held, wide_w[..., n, None]) * wide_x).sum(3))
    return (scale * out).to(x.dtype)


def _slots(window: Ints) -> int:
    count = 1
    for n in window:
        count *= n
    return count


@dot.register_fake
def _(q: Tensor, k: Tensor, scale: float, grid: Ints, window: Ints, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], _slots(window))


@gather.register_fake
def _(weights: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(*weights.shape[:3], v.shape[-1])


@scatter.register_fake
def _(weights: Tensor, x: Tensor, heads_kv: int, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], heads_kv, x.shape[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[-6:]  # scale, grid, window, stride, dilation, causal


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k = ctx.saved_tensors
    dq = gather(grad, k, *ctx.options) if ctx.needs_input_grad[0] else None
    dk = scatter(grad, q, k.shape[2], *ctx.options) if ctx.needs_input_grad[1] else None
    return dq, dk, *(None,) * 6


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, v = ctx.saved_tensors
    dw = dot(grad, v, *ctx.options).to(weights.dtype) if ctx.needs_input_grad[0] else None
    dv = scatter(weights, grad, v.shape[2], *ctx.options) if ctx.needs_input_grad[1] else None
    return dw, dv, *(None,) * 6


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, x = ctx.saved_tensors
    dw = dot(x, grad, *ctx.options).to(weights.dtype) if ctx.needs_input_grad[0] else None
    dx = gather(weights, grad, *ctx.options) if ctx.needs_input_grad[1] else None
    return dw, dx, *(None,) * 7


dot.register_autograd(_dot_backward, setup_context=_save)
gather.register_autograd(_gather_backward, setup_context=_save)
scatter.register_autograd(_scatter_backward, setup_context=_save)
