"""The two halves of neighborhood attention, for what comes between scores and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tileattn._common import checks
from tileattn._common.precision import autocast_all
from tileattn.neighborhood import _stencil
from tileattn.neighborhood._checks import PerAxis, check_grid, check_spec


def neighborhood_qk(
    q: Tensor,
    k: Tensor,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
    scale: float | None = None,
) -> Tensor:
    """Each query's scores with the keys of its window.

    Slow beside :func:`tileattn.neighborhood_attention`, but open: a bias, another normaliser or
    dropout can stand between this and :func:`neighborhood_av`. Plain PyTorch on any device.

    Args:
        q: [B, *grid, Hq, D] of any floating dtype, one to three grid axes.
        k: [B, *grid, Hkv, D] of q's dtype; Hkv divides Hq.
        window, stride, dilation, causal, scale: as in :func:`tileattn.neighborhood_attention`.

    Returns:
        [B, *grid, Hq, prod(window)] of q's dtype: slot n is the n-th key of the window, row-major.
        -inf in the slots of a causal axis that hold no key. Differentiable, also twice.

    Raises:
        TypeError, ValueError: as :func:`tileattn.neighborhood_attention`.

    Source: Hassani et al., Neighborhood Attention Transformer (CVPR 2023).
    """
    q, k = autocast_all(q, k)
    grid = check_grid(q, k, k)
    spec = check_spec(grid, window, stride, dilation, causal)[:4]
    factor = checks.check_scale(scale, q.shape[-1])
    found = _stencil.dot(_tokens(q), _tokens(k), factor, grid, *spec)
    scores: Tensor = found.reshape(*q.shape[:-1], found.shape[-1])
    if any(spec[3]):
        held = _stencil.held_slots(grid, spec, q.device)
        scores = scores.masked_fill(~held[..., None, :], -torch.inf)
    return scores


def neighborhood_av(
    weights: Tensor,
    v: Tensor,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
) -> Tensor:
    """Each query's weighted sum of the values in its window.

    Args:
        weights: [B, *grid, Hq, prod(window)] of v's dtype, slots as in :func:`neighborhood_qk`;
            those without a key count for nothing.
        v: [B, *grid, Hkv, Dv]; Hkv divides Hq.
        window, stride, dilation, causal: as in :func:`tileattn.neighborhood_attention`.

    Returns:
        [B, *grid, Hq, Dv] of v's dtype. Differentiable, also twice.

    Raises:
        TypeError, ValueError: as :func:`tileattn.neighborhood_attention`.

    Source: as :func:`neighborhood_qk`.
    """
    weights, v = autocast_all(weights, v)
    grid = check_grid(v, v, v)
    spec = check_spec(grid, window, stride, dilation, causal)[:4]
    checks.require_tensor("weights", weights)
    expected = (*v.shape[:-2], math.prod(spec[0]))
    heads, heads_kv = (weights.shape[-2] if weights.dim() > 1 else 0), v.shape[-2]
    fits = weights.dim() == v.dim() and (*weights.shape[:-2], weights.shape[-1]) == expected
    if not fits or heads % heads_kv != 0:
        raise ValueError(
            f"weights is {checks.describe(weights)}; it must be [batch, *grid, heads, slots] with "
            f"batch and grid of v, {list(v.shape[:-2])}, a multiple of its {heads_kv} heads and "
            f"{expected[-1]} slots"
        )
    if weights.dtype != v.dtype:
        raise TypeError(f"weights has dtype {weights.dtype}; it must have that of v, {v.dtype}")
    checks.require_device("weights", weights, v)
    if any(spec[3]):  # what is not a number there must not reach the sum
        held = _stencil.held_slots(grid, spec, v.device)
        weights = weights.masked_fill(~held[..., None, :], 0.0)
    out: Tensor = _stencil.gather(_tokens(weights), _tokens(v), 1.0, grid, *spec)
    return out.reshape(*weights.shape[:-1], v.shape[-1])


def relative_positions(
    grid: Sequence[int],
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Where each slot's key lies relative to the query, as an index into a table.

    Args:
        grid: lengths of the axes.
        window, stride, dilation, causal: as in :func:`tileattn.neighborhood_attention`.

    Returns:
        int64 [*grid, prod(window)], indices into a table of prod(2 * window - 1) entries,
        row-major; window - 1 on each axis is the query itself, counted in steps of dilation.
    """
    spec = check_spec(grid, window, stride, dilation, causal)[:4]
    where = torch.device("cpu" if device is None else device)
    index = torch.zeros(1, dtype=torch.int64, device=where)
    for length, w, s, d, c in zip(grid, *spec, strict=True):
        keys, _ = _stencil.axis_slots(length, w, s, d, c, where)
        steps = keys // d - (torch.arange(length, device=where) // d)[:, None] + w - 1
        index = (index[..., None, :, None] * (2 * w - 1) + steps[:, None, :]).flatten(-2)
    return index


def _tokens(tensor: Tensor) -> Tensor:
    """[B, *grid, heads, x] as [B, tokens, heads, x]."""
    return tensor.flatten(1, -3)
