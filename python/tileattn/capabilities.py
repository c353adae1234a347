"""What each backend can do, with the reason where it cannot.

One table, asked by dispatch, by the error texts, by the tests and by ``tileattn info``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tileattn._common.library import LIBRARY_ERROR, cuda_kernels


def _largest_cuda_dim(op: str) -> float:
    """Of the head dims that the CUDA kernels of ``op`` were built for; infinite without kernels.

    Those lack everything, not a head dim.
    """
    return max((row["dim"] for row in cuda_kernels() if row["op"] == op), default=math.inf)


MAX_HEAD_DIM = 256
HEAD_DIM_STEP = 8
CUDA_GRID_HEAD_DIM = _largest_cuda_dim("neighborhood_forward")
MAX_CUDA_LINEAR_DIM = _largest_cuda_dim("linear")
#: Of q and k.
MAX_CUDA_TAYLOR2_DIM = _largest_cuda_dim("linear_taylor2")
KERNEL_BACKENDS = ("cuda", "cpu")

_NO_DOUBLE = "kernels accumulate in float32"
_CUDA_FLOAT32 = "the CUDA kernels run on float16 and bfloat16 tensor cores"
_HEAD_DIM = f"kernels are built for multiples of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}"
_PACKED_BIAS = "a bias has no layout for packed sequences of different lengths"
_SLOPES = "ALiBi slopes are constants of the model and are not differentiated"
_GRID_DIM = (
    f"with head dims above {CUDA_GRID_HEAD_DIM} the CUDA kernels of grids do not fit into the "
    "registers"
)
_LINEAR_DIM = (
    f"the CUDA kernels of linear attention take multiples of {HEAD_DIM_STEP} up to "
    f"{MAX_CUDA_LINEAR_DIM}: the state of a head stays on chip"
)
_FEATURES = "PyTorch builds the features first, in memory"
_TAYLOR2_DIM = (
    f"with more than {MAX_CUDA_TAYLOR2_DIM} channels the state of their features does not stay on "
    "chip"
)
_SECOND = "the backward kernels are not differentiable themselves"

#: feature -> {backend: why not}; a backend that is not named supports the feature.
_MISSING: dict[str, dict[str, str]] = {
    "float32": {"cuda": _CUDA_FLOAT32},
    "float16": {},
    "bfloat16": {},
    "float64": {"cuda": _NO_DOUBLE, "cpu": _NO_DOUBLE},
    "any head dim": {"cuda": _HEAD_DIM, "cpu": _HEAD_DIM},
    "causal, window, sink_tokens": {},
    "softcap, alibi_slopes, sinks": {},
    "bias, with gradient": {},
    "bias with cu_seqlens": dict.fromkeys(("cuda", "cpu", "reference"), _PACKED_BIAS),
    "gradient of alibi_slopes": dict.fromkeys(("cuda", "cpu", "reference"), _SLOPES),
    "cu_seqlens (packed sequences)": {},
    "gradients of q, k, v, bias, sinks, lse": {},
    "linear attention": {},
    "linear attention, any head dim": {"cuda": _LINEAR_DIM},
    "taylor2 inside of the kernel": {"reference": _FEATURES},
    "taylor2, large head dims": {"cuda": _TAYLOR2_DIM},
    "neighborhood attention": {},
    "neighborhood attention, large head dims": {"cuda": _GRID_DIM},
    "second derivatives": {"cuda": _SECOND, "cpu": _SECOND},
}
FEATURES = tuple(_MISSING)
_DTYPE_FEATURE = {getattr(torch, f): f for f in ("float32", "float16", "bfloat16", "float64")}


@dataclass(frozen=True)
class Capability:
    """One cell of the table: ``reason`` is empty where the feature is supported."""

    backend: str
    feature: str
    reason: str = ""

    @property
    def supported(self) -> bool:
        return not self.reason


def why_unavailable(backend: str) -> str | None:
    """Why ``backend`` can run nothing at all here, or None if it can.

    It speaks of the kernels in this installation, not of the presence of a device.
    """
    if backend == "reference":
        return None
    if LIBRARY_ERROR is not None:
        return LIBRARY_ERROR
    key = backend.upper()
    if torch._C._dispatch_has_kernel_for_dispatch_key("tileattn::attention_forward", key):
        return None
    return f"this installation was built without {key} kernels"


_UNAVAILABLE = {name: why_unavailable(name) or "" for name in (*KERNEL_BACKENDS, "reference")}


def why_not(backend: str, feature: str) -> str:
    """Why ``backend`` lacks ``feature``; empty if it has it."""
    return _UNAVAILABLE[backend] or _MISSING[feature].get(backend, "")


def capability(backend: str, feature: str) -> Capability:
    """One cell of the table.

    Args:
        backend: "cuda", "cpu" or "reference".
        feature: one of :data:`FEATURES`.
    """
    return Capability(backend, feature, why_not(backend, feature))


def table() -> Iterator[Capability]:
    """Every cell, feature by feature."""
    for feature in FEATURES:
        for backend in (*KERNEL_BACKENDS, "reference"):
            yield capability(backend, feature)


def require_dtype(backend: str, name: str, dtype: torch.dtype) -> None:
    """:func:`require` of a floating dtype, that of the tensors ``name``."""
    require(backend, _DTYPE_FEATURE[dtype], f"{name} of dtype {dtype}")


def require(backend: str, feature: str, what: str) -> None:
    """Raises NotImplementedError, with what to do instead, if ``backend`` lacks ``feature``.

    Args:
        backend: "cuda", "cpu" or "reference".
        feature: one of :data:`FEATURES`.
        what: the caller's own words for what was asked, e.g. "q of dtype torch.float64".
    """
    reason = why_not(backend, feature)
    if not reason:
        return
    advice = (
        ""
        if why_not("reference", feature)
        else " Pass backend='reference' for the slow, plain PyTorch version."
    )
    raise NotImplementedError(
        f"tileattn cannot run {what} on backend {backend!r}: {reason}.{advice}"
    )
