"""How far a kernel may be from the truth: a multiple of what plain PyTorch loses itself.

The truth is the reference in float64 on the very same (already rounded) inputs. A kernel's largest
error may be ``ratio`` times the largest error of PyTorch operations in the kernel's dtype. The
floor covers cases in which PyTorch happens to be exact: one rounding of the largest result to its
dtype, and a few float32 roundings of sums as large as it, or as a dot product of two standard
normal vectors (which inputs are): a kernel subtracts such sums where PyTorch may be exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

OUT_RATIO = 2.0
GRADIENT_RATIO = 3.0
DOT_PRODUCT = 4.0  # its size over 16 channels


def floor(expected: Tensor, dtype: torch.dtype) -> float:
    """The error that is allowed in any case."""
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    sums = 8 * torch.finfo(torch.float32).eps * max(largest, DOT_PRODUCT)
    return 0.5 * torch.finfo(dtype).eps * largest + sums


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """The largest distance where both are finite."""
    both = actual.isfinite() & expected.isfinite()
    return float((actual.double() - expected).abs()[both].max()) if both.any() else 0.0


def assert_as_exact(
    name: str, actual: Tensor, expected: Tensor, *peers: Tensor, ratio: float = OUT_RATIO
) -> None:
    """``actual`` is at most ``ratio`` times as far from ``expected`` (float64) as a peer is.

    Infinities must stand at the same places, and nothing may be NaN. The message names the first
    coordinate that is too far off.
    """
    assert actual.shape == expected.shape, f"{name}: {actual.shape}, not {expected.shape}"
    loss = max(largest_error(peer, expected) for peer in peers)
    allowed = ratio * loss + floor(expected, actual.dtype)
    distance = (actual.double() - expected).abs()
    distance = distance.masked_fill(actual.double() == expected, 0.0)  # equal infinities
    bad = ~(distance <= allowed)  # true for NaN
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}{list(where)} is {float(actual[where])!r}, not {float(expected[where])!r}: off "
            f"by {float(distance[where]):.3g} where {allowed:.3g} is allowed; "
            f"{int(bad.sum())} of {bad.numel()} elements are off, at most by "
            f"{float(distance.nan_to_num(torch.inf).max()):.3g}"
        )
