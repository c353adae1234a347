"""Neighborhood attention on token grids, and the blocked variants that share its kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor

from tileattn import capabilities, reference
from tileattn._common import checks, softmax
from tileattn._common.precision import autocast_all
from tileattn.backend import resolve_backend
from tileattn.neighborhood._checks import (
    PerAxis,
    Spec,
    check_extra,
    check_grid,
    check_spec,
    per_axis,
)
from tileattn.neighborhood._op import FORWARD, Tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack

_BORDERS = ("cut", "zeros")

__all__ = ["halo_attention", "neighborhood_attention", "windowed_attention"]


class _Options(TypedDict, total=False):
    stride: PerAxis
    dilation: PerAxis
    causal: bool | Sequence[bool]
    scale: float | None
    extra_keys: Tensor | None
    extra_values: Tensor | None
    deterministic: bool
    backend: str | None


@overload
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: PerAxis,
    return_lse: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: PerAxis,
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    extra_keys: Tensor | None = None,
    extra_values: Tensor | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each token of a grid over a window around it.

    On each axis the query at position p of an axis of length L sees ``window`` keys: from
    window // 2 before its leader, moved inwards at a border so that none is lost. The leader of a
    run of ``stride`` queries is the one in its middle (stride 1: every query leads itself), so
    that a run shares one window. A causal axis shows keys up to the query itself, from window - 1
    before the last query of the run. With dilation d, tokens d apart form a group with a grid of
    its own, and p, L count its tokens. A key is seen where every axis shows it. Every query sees
    itself, so no row is empty.

    window = L: dense attention. stride 1: NA. stride = window, dividing L: blocked attention.

    Args:
        q: [B, *grid, Hq, D] float32, float16 or bfloat16, one to three grid axes, any strides.
        k: [B, *grid, Hkv, D] of q's dtype; Hkv divides Hq (query head h reads h // (Hq / Hkv)).
        v: [B, *grid, Hkv, Dv]. D and Dv are multiples of 8 up to 256.
        window: keys per axis, >= 2; an int for all axes or one per axis, as the next three.
        stride: 1 <= stride <= window.
        dilation: >= 1, window * dilation at most the length of the axis.
        causal: hide keys after the query on the axis.
        scale: factor of the scores; D ** -0.5 by default.
        extra_keys: [B, E, Hkv, D] keys that every query sees, in the same softmax.
        extra_values: [B, E, Hkv, Dv], with extra_keys.
        deterministic: bit-equal gradients from run to run.
        return_lse: also return the logarithm of each row's sum.
        backend: "auto", "cuda", "cpu" or "reference"; None: that of :func:`tileattn.use_backend`.

    Returns:
        out: [B, *grid, Hq, Dv] of q's dtype; with ``return_lse`` also lse: [B, *grid, Hq] float32,
        natural logarithm. Both are differentiable.

    Under autocast the tensors are cast to its dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; names the axis.
        NotImplementedError: no kernel for this call; the message says how to get the reference.

    Source: Hassani et al., Neighborhood Attention Transformer (CVPR 2023) and Generalized
    Neighborhood Attention (2025).
    """
    deterministic = checks.check_flag("deterministic", deterministic)
    return_lse = checks.check_flag("return_lse", return_lse)
    q, k, v = autocast_all(q, k, v)
    grid = check_grid(q, k, v)
    spec = check_spec(grid, window, stride, dilation, causal)
    extra_keys, extra_values = autocast_all(extra_keys, extra_values)
    check_extra(extra_keys, extra_values, q, v, k.shape[-2])
    tensors = Tensors(q, k, v, extra_keys, extra_values)
    out, lse = _attend(tensors, spec, scale, deterministic, backend)
    return (out, lse) if return_lse else out


def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: PerAxis,
    halo: PerAxis,
    border: Literal["cut", "zeros"] = "cut",
    scale: float | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Attention of each block of queries over the block and ``halo`` keys around it.

    Args:
        q: [B, *grid, Hq, D], k: [B, *grid, Hkv, D], v: [B, *grid, Hkv, Dv], as in
            :func:`neighborhood_attention`.
        block: queries of a block per axis, >= 1; the last block may be cut off.
        halo: keys seen before and after the block per axis, >= 0.
        border: what lies beyond the grid: "cut", nothing; "zeros", keys and values of zeros, which
            take part in the softmax (HaloNet's padding).
        scale, deterministic, backend: as in :func:`neighborhood_attention`.

    Returns:
        [B, *grid, Hq, Dv] of q's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: Vaswani et al., Scaling Local Self-Attention (HaloNet, CVPR 2021).
    """
    deterministic = checks.check_flag("deterministic", deterministic)
    if border not in _BORDERS:
        raise ValueError(f"border is {border!r}; allowed: {', '.join(map(repr, _BORDERS))}")
    q, k, v = autocast_all(q, k, v)
    grid = check_grid(q, k, v)
    blocks = per_axis("block", block, len(grid), 1)
    halos = per_axis("halo", halo, len(grid), 0)
    windows = tuple(b + 2 * h for b, h in zip(blocks, halos, strict=True))
    spec = _clipped(windows, blocks, (0,) * len(grid))
    out, lse = _attend(Tensors(q, k, v), spec, scale, deterministic, backend)
    if border == "cut":
        return out
    # m more logits of 0 without a value join a row's sum: they only shrink its weights.
    beyond = math.prod(windows) - _keys_in_grid(grid, blocks, halos, q.device)
    total = torch.logaddexp(lse, beyond.to(lse.dtype).log()[..., None])
    return (out * torch.exp(lse - total)[..., None]).to(out.dtype)


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: PerAxis,
    shift: PerAxis = 0,
    scale: float | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Attention within the blocks of a grid, as in Swin; no cyclic shift and no mask is needed.

    Args:
        q: [B, *grid, Hq, D], k: [B, *grid, Hkv, D], v: [B, *grid, Hkv, Dv], as in
            :func:`neighborhood_attention`.
        window: tokens of a block per axis, >= 1; blocks at borders may be smaller.
        shift: where the second block begins per axis, 0 <= shift < window (0: at window).
        scale, deterministic, backend: as in :func:`neighborhood_attention`.

    Returns:
        [B, *grid, Hq, Dv] of q's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.

    Source: Liu et al., Swin Transformer (ICCV 2021).
    """
    deterministic = checks.check_flag("deterministic", deterministic)
    q, k, v = autocast_all(q, k, v)
    grid = check_grid(q, k, v)
    windows = per_axis("window", window, len(grid), 1)
    shifts = per_axis("shift", shift, len(grid), 0)
    for axis, (w, s) in enumerate(zip(windows, shifts, strict=True)):
        if s >= w:
            raise ValueError(f"shift is {s} on axis {axis}; it must be below the window there, {w}")
    offsets = tuple((w - s) % w for w, s in zip(windows, shifts, strict=True))
    spec = _clipped(windows, windows, offsets)
    out, _ = _attend(Tensors(q, k, v), spec, scale, deterministic, backend)
    return out


def _clipped(windows: tuple[int, ...], strides: tuple[int, ...], offsets: tuple[int, ...]) -> Spec:
    rank = len(windows)
    return Spec(windows, strides, (1,) * rank, (0,) * rank, offsets, True)


def _keys_in_grid(
    grid: Sequence[int], blocks: Sequence[int], halos: Sequence[int], device: torch.device
) -> Tensor:
    """[*grid] int64: how many keys of a query's halo lie on the grid."""
    count = torch.ones((), dtype=torch.int64, device=device)
    for length, b, h in zip(grid, blocks, halos, strict=True):
        first = torch.arange(length, device=device) // b * b
        along = (first + b + h).clamp(max=length) - (first - h).clamp(min=0)
        count = count[..., None] * along
    return count


def _attend(
    tensors: Tensors, spec: Spec, scale: float | None, deterministic: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    """out and lse of checked tensors."""
    q, v = tensors.q, tensors.v
    factor = checks.check_scale(scale, q.shape[-1])
    chosen = resolve_backend(backend, q.device)
    if chosen == "reference":
        # What it traces does not ask again.
        for length, w, d in zip(q.shape[1:-2], spec.window, spec.dilation, strict=True):
            torch._check(spec.clip or w * d <= length)
        options = spec._replace(causal=tuple(map(bool, spec.causal)))._asdict()
        out, lse = reference.neighborhood_attention(
            **tensors._asdict(), **options, scale=factor, return_lse=True
        )
        return out, lse
    capabilities.require(chosen, "neighborhood attention", "neighborhood attention")
    softmax.require_kernel(chosen, q, v)
    dim = max(q.shape[-1], v.shape[-1])
    if dim > capabilities.CUDA_GRID_HEAD_DIM:
        feature = "neighborhood attention, large head dims"
        capabilities.require(chosen, feature, f"neighborhood attention with head dim {dim}")
    return softmax.forward(FORWARD, tensors, *spec, factor, deterministic)
