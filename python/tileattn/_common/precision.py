"""Autocast's dtype, and how float16 is kept from over- and underflow."""

from __future__ import annotations

from typing import Any

import torch
from torch import _C, Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a matrix product takes the tensor: autocast's, or its own."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # torch refuses to say for meta
        return tensor.dtype
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if eligible else tensor.dtype


def autocast(tensor: Any) -> Any:
    """The tensor in that dtype; what is no tensor as it is."""
    if not isinstance(tensor, Tensor):
        return tensor
    dtype = autocast_dtype(tensor)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def autocast_all(*tensors: Any) -> Any:
    """:func:`autocast` of each of them."""
    return tuple(map(autocast, tensors)) if _C._is_any_autocast_enabled() else tensors


def autocast_bias(bias: Any) -> Any:
    """:func:`autocast` of what is added to scores: float32 stays exact."""
    is_exact = isinstance(bias, Tensor) and bias.dtype == torch.float32
    return bias if is_exact else autocast(bias)


def range_factor(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The power of two that brings the largest finite value over ``dims`` to between 4 and 8.

    Results of attention over such values, and gradients through them, have room in float16 on
    either side. No gradient passes through the factor.

    Returns:
        float32, of x's shape with ``dims`` kept as 1.
    """
    if x.numel() == 0:
        return x.new_ones(
            [1 if n in dims else s for n, s in enumerate(x.shape)], dtype=torch.float32
        )
    largest = x.detach().float().nan_to_num(0.0, 0.0, 0.0).abs().amax(dims, keepdim=True)
    return torch.ldexp(torch.ones_like(largest), 3 - torch.frexp(largest).exponent)
