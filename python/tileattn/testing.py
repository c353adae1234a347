"""How far a kernel may be from the truth: a multiple of what plain PyTorch loses itself.

The truth is the reference in float64 on the very same (already rounded) inputs. A kernel's largest
error may be ``ratio`` times the largest error of PyTorch operations in the kernel's dtype. The
floor covers cases in which PyTorch happens to be exact: one rounding of the largest result, and a
few roundings of float32 sums of terms of size one (inputs are standard normal).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OUT_RATIO = 2.0
GRADIENT_RATIO = 3.0


@dataclass(frozen=True)
class Accuracy:
    """Largest errors against float64, of a kernel and of its peer, and what is allowed."""

    error: float
    peer_error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    @property
    def ratio(self) -> float:
        """The kernel's error as a multiple of its peer's."""
        return self.error / self.peer_error if self.peer_error > 0 else float("nan")


def floor(expected: Tensor, dtype: torch.dtype) -> float:
    """The error that is allowed in any case."""
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return 0.5 * torch.finfo(dtype).eps * largest + 8 * torch.finfo(torch.float32).eps


def distance(actual: Tensor, expected: Tensor) -> Tensor:
    """The float64 distance of each element: 0 for equal infinities, inf for NaN."""
    gap = (actual.double() - expected).abs()
    return gap.masked_fill(actual.double() == expected, 0.0).nan_to_num(torch.inf, torch.inf)


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """The largest distance where both are finite."""
    both = actual.isfinite() & expected.isfinite()
    return float((actual.double() - expected).abs()[both].max()) if both.any() else 0.0


def accuracy(actual: Tensor, expected: Tensor, peer: Tensor, ratio: float = OUT_RATIO) -> Accuracy:
    """How near ``actual`` is to ``expected`` (float64), beside ``peer``, which PyTorch computed.

    A NaN, or an infinity at another place than in ``expected``, is an infinite error.
    """
    peer_error = largest_error(peer, expected)
    allowed = ratio * peer_error + floor(expected, actual.dtype)
    gap = distance(actual, expected)
    return Accuracy(float(gap.max()) if gap.numel() else 0.0, peer_error, allowed)
