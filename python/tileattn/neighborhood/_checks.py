"""Checks of the arguments of neighborhood attention; every message names axis, value and rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from tileattn._common import checks

MAX_RANK = 3
LAYOUT = "[batch, *grid, heads, head_dim] with one to three grid axes"

PerAxis = int | Sequence[int]


class Spec(NamedTuple):
    """Which keys a query sees, one entry per grid axis; what the ops take.

    offset and clip are for blocked variants: the first run of queries is ``offset`` shorter, and
    windows are cut off at borders instead of moved inwards.
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[int, ...]
    offset: tuple[int, ...]
    clip: bool


def check_grid(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    """Returns the grid if ranks, dtypes, devices and shapes of q, k and v agree."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.require_tensor(name, tensor)
    if not 4 <= q.dim() <= 3 + MAX_RANK:
        raise ValueError(f"q is {checks.describe(q)}; its layout must be {LAYOUT}")
    grid = tuple(q.shape[1:-2])
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dim() != q.dim() or tuple(tensor.shape[1:-2]) != grid:
            raise ValueError(
                f"{name} is {checks.describe(tensor)}; it must stand on the grid of q, "
                f"{list(grid)}: {LAYOUT}"
            )
    checks.check_agreement(q, k, v)
    tokens = 1
    for length in grid:
        tokens *= length
    if checks.known(tokens >= checks.MAX_TOKENS):
        raise ValueError(f"the grid has {tokens} tokens; allowed: below {checks.MAX_TOKENS}")
    return grid


def per_axis(name: str, value: PerAxis, rank: int, minimum: int) -> tuple[int, ...]:
    """One int >= minimum for each axis."""
    allowed = f"an int >= {minimum}, or {rank} of them, one per grid axis"
    values = checks.entries(value)
    if values is None:
        number = checks.plain(value)
        if not checks.is_int(number):
            raise checks.wrong_type(name, value, allowed)
        values = (number,) * rank
    if len(values) != rank:
        raise ValueError(f"{name} has {len(values)} entries; it must be {allowed}")
    for axis, n in enumerate(values):
        if not checks.is_int(n):
            raise checks.wrong_type(name, n, allowed, axis)
        if n < minimum:
            raise ValueError(f"{name} is {n} on axis {axis}; it must be >= {minimum}")
        if checks.known(n >= checks.MAX_TOKENS):
            raise ValueError(f"{name} is {n} on axis {axis}; allowed: below {checks.MAX_TOKENS}")
    return values


def check_fit(grid: Sequence[int], windows: Sequence[int], dilations: Sequence[int]) -> None:
    """No window reaches beyond its axis."""
    for axis, (length, w, d) in enumerate(zip(grid, windows, dilations, strict=True)):
        if checks.known(w * d > length):
            raise ValueError(
                f"window is {w} on axis {axis} with dilation {d}; window * dilation, {w * d}, must "
                f"be at most the length of the axis, {length}"
            )


def check_spec(
    grid: Sequence[int],
    window: PerAxis,
    stride: PerAxis,
    dilation: PerAxis,
    causal: bool | Sequence[bool],
) -> Spec:
    """The arguments of :func:`tileattn.neighborhood_attention`, one entry per axis."""
    rank = len(grid)
    windows = per_axis("window", window, rank, 2)
    strides = per_axis("stride", stride, rank, 1)
    dilations = per_axis("dilation", dilation, rank, 1)
    for axis, (w, s) in enumerate(zip(windows, strides, strict=True)):
        if s > w:
            raise ValueError(
                f"stride is {s} on axis {axis}; it must be at most the window there, {w}"
            )
    check_fit(grid, windows, dilations)
    return Spec(windows, strides, dilations, _flags(causal, rank), (0,) * rank, False)


def _flags(causal: bool | Sequence[bool], rank: int) -> tuple[int, ...]:
    allowed = f"True or False, or {rank} of them, one per grid axis"
    values = checks.entries(causal)
    if values is None:
        values = (checks.plain(causal),) * rank
    if len(values) != rank:
        raise ValueError(f"causal has {len(values)} entries; it must be {allowed}")
    for axis, flag in enumerate(values):
        if not isinstance(flag, bool):
            raise checks.wrong_type("causal", flag, allowed, axis)
    return tuple(int(flag is True) for flag in values)


def check_extra(
    extra_keys: Tensor | None, extra_values: Tensor | None, q: Tensor, v: Tensor, heads_kv: int
) -> None:
    """[B, E, Hkv, D] and [B, E, Hkv, Dv] of q's dtype, or none of both."""
    if (extra_keys is None) != (extra_values is None):
        missing = "extra_keys" if extra_keys is None else "extra_values"
        raise ValueError(f"{missing} is None; extra_keys and extra_values go together")
    if extra_keys is None or extra_values is None:
        return
    for name, tensor, dim in (
        ("extra_keys", extra_keys, q.shape[-1]),
        ("extra_values", extra_values, v.shape[-1]),
    ):
        checks.require_tensor(name, tensor)
        checks.require_device(name, tensor, q)
        if tensor.dtype != q.dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; it must have the dtype of q, {q.dtype}"
            )
        fits = tensor.dim() == 4 and tensor.shape[1] == extra_keys.shape[1]
        if not fits or tuple(tensor.shape[i] for i in (0, 2, 3)) != (q.shape[0], heads_kv, dim):
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; it must be [batch, extra, heads of k, "
                f"head_dim] = [{q.shape[0]}, extra, {heads_kv}, {dim}]"
            )
