"""Neighborhood attention from its definition; gradients come from autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tileattn.reference.dense import _scores, _softmax_values
from tileattn.reference.precision import exact_dtype, no_autocast

T = TypeVar("T", int, bool)


def axis_mask(
    length: int,
    window: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    causal: bool = False,
    offset: int = 0,
    clip: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """bool [length, length], True where query i sees key j on one axis.

    Args:
        window, stride, dilation, causal: as in :func:`tileattn.neighborhood_attention`.
        offset: the first group of queries that share a window is this much shorter.
        clip: cut the window off at the border instead of moving it inwards.
    """
    token = torch.arange(length, device=device)
    group, position = token % dilation, token // dilation
    # Tokens with the same remainder form a group of their own, of this length.
    group_length = (length - group + dilation - 1) // dilation
    first = (position + offset) // stride * stride - offset
    if causal:
        leader = torch.minimum(first + stride - 1, group_length - 1)
        start, end = (leader - window + 1).clamp(min=0), position + 1
    elif clip:
        start = first + stride // 2 - window // 2
        end = start + window
    else:
        leader = torch.minimum(first + stride // 2, group_length - 1)
        start = torch.minimum((leader - window // 2).clamp(min=0), group_length - window)
        end = start + window
    same_group = group[:, None] == group[None, :]
    inside = (start[:, None] <= position) & (position < end[:, None])
    return same_group & inside


def neighborhood_mask(
    grid: Sequence[int],
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    offset: int | Sequence[int] = 0,
    clip: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """bool [prod(grid), prod(grid)]: the axes' masks, one and all."""
    rank = len(grid)
    per_axis = zip(
        grid,
        *(_per_axis(value, rank) for value in (window, stride, dilation, offset)),
        _per_axis(causal, rank),
        strict=True,
    )
    visible = torch.ones(1, 1, dtype=torch.bool, device=device)
    for length, w, s, d, o, c in per_axis:
        mask = axis_mask(
            length, w, stride=s, dilation=d, causal=bool(c), offset=o, clip=clip, device=device
        )
        n = visible.shape[0] * length
        visible = (visible[:, None, :, None] & mask[None, :, None, :]).reshape(n, n)
    return visible


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    extra_keys: Tensor | None = None,
    extra_values: Tensor | None = None,
    return_lse: bool = False,
    offset: int | Sequence[int] = 0,
    clip: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As :func:`tileattn.neighborhood_attention`, for any head dim and also in float64.

    Args:
        offset, clip: as in :func:`axis_mask`.
        compute_dtype: dtype of every step; by default float32, or float64 for float64 inputs.
            lse has this dtype too.
    """
    dtype = compute_dtype or exact_dtype(q.dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grid = q.shape[1:-2]
    visible = neighborhood_mask(
        grid,
        window,
        stride=stride,
        dilation=dilation,
        causal=causal,
        offset=offset,
        clip=clip,
        device=q.device,
    )
    tokens_q, tokens_k, tokens_v = (_one_axis(tensor).to(dtype) for tensor in (q, k, v))
    if extra_keys is not None and extra_values is not None:
        tokens_k = torch.cat([tokens_k, extra_keys.to(dtype)], dim=1)
        tokens_v = torch.cat([tokens_v, extra_values.to(dtype)], dim=1)
        always = visible.new_ones(visible.shape[0], extra_keys.shape[1])
        visible = torch.cat([visible, always], dim=1)
    with no_autocast(q.device):  # it would round the products
        scores = _scores(tokens_q, tokens_k, scale, 0.0, None, None, visible)
        out, lse = _softmax_values(scores, tokens_v, None, visible)
    out = out.to(q.dtype).reshape(*q.shape[:-1], v.shape[-1])
    return (out, lse.reshape(q.shape[:-1])) if return_lse else out


def _one_axis(tensor: Tensor) -> Tensor:
    """[B, *grid, H, D] as [B, tokens, H, D]."""
    shape = tensor.shape
    return tensor.reshape(shape[0], math.prod(shape[1:-2]), *shape[-2:])


def _per_axis(value: T | Sequence[T], rank: int) -> tuple[T, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank
