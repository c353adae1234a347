"""What the operators of softmax attention share, whichever keys a query sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import _C, Tensor

from tileattn import capabilities
from tileattn._common import transforms


class Results(NamedTuple):
    """What a forward returns, and its backward takes.

    The low parts are what rounding takes from out and lse; empty unless ``low_parts``, which
    gradients ask for.
    """

    out: Tensor
    lse: Tensor
    out_low: Tensor
    lse_low: Tensor


#: In a schema.
RESULTS = ", ".join(f"Tensor {name}" for name in Results._fields)


def optional_tensors(tensors: Any) -> str:
    """In a schema: the fields of a NamedTuple of tensors that may be None."""
    return ", ".join(f"Tensor? {name}" for name in tensors._field_defaults)


def require_kernel(backend: str, q: Tensor, v: Tensor) -> None:
    """What only the kernels cannot do; the reference takes it."""
    for name, tensor in (("q", q), ("v", v)):
        dim = tensor.shape[-1]
        if dim % capabilities.HEAD_DIM_STEP != 0 or dim > capabilities.MAX_HEAD_DIM:
            raise ValueError(
                f"{name} has head_dim {dim}; allowed on backend {backend!r}: multiples of "
                f"{capabilities.HEAD_DIM_STEP} up to {capabilities.MAX_HEAD_DIM} "
                "(backend='reference' takes any)"
            )
    capabilities.require_dtype(backend, "q", q.dtype)


def forward(op: Any, tensors: tuple[Tensor | None, ...], *settings: Any) -> tuple[Tensor, Tensor]:
    """out and lse, with all that a gradient needs where one may be asked for."""
    # What torch.func.grad differentiates does not say so while torch.compile traces.
    asked = _C._are_functorch_transforms_active() or any(
        t is not None and t.requires_grad for t in tensors
    )
    low_parts = torch.is_grad_enabled() and asked
    out, lse, _, _ = transforms.call(op, *tensors, *settings, low_parts, recorded=low_parts)
    return out, lse


def fake_results(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """What a forward with these arguments returns, without values."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    *_, low_parts = rest
    rounded = low_parts and q.dtype != torch.float32
    return (
        out,
        lse,
        out.new_empty(out.shape if rounded else 0, dtype=torch.int8),
        lse.new_empty(lse.shape if low_parts else 0),
    )


def keeping(tensors: Any) -> Callable[..., None]:
    """The ``setup_context`` of a forward whose arguments begin with this NamedTuple's.

    Keeps them and the results as a backward takes them, and as ``ctx.settings`` the plain
    arguments but the last, ``low_parts``.
    """
    count = len(tensors._fields)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, k, v, *others = inputs[:count]
        transforms.save(ctx, q, k, v, *output, *others)
        _, _, *low_parts = output
        ctx.mark_non_differentiable(*low_parts)
        ctx.settings = inputs[count:-1]

    return setup_context


def with_results(tensors: tuple[Any, ...], results: tuple[Any, ...]) -> tuple[Any, ...]:
    """As a backward takes them."""
    q, k, v, *others = tensors
    return (q, k, v, *results, *others)


def without_results(kind: Any, kept: tuple[Any, ...]) -> tuple[Any, Results]:
    """The other way round: the NamedTuple of tensors, and the results."""
    q, k, v, out, lse, out_low, lse_low, *others = kept
    return kind(q, k, v, *others), Results(out, lse, out_low, lse_low)
