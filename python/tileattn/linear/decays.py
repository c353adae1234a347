"""Constant decays in circulation, as ``log_decay`` [heads] of :func:`tileattn.linear_attention`.

They are not compatible with one another: take the one that a model was trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tileattn._common import checks


def transnormer(heads: int, *, layer: int = 0, num_layers: int = 1) -> Tensor:
    """-2^(-8 h / H) (1 - l / (L - 1) + 1e-5), h = 1 .. H: strongest in the first layer.

    Args:
        heads: H; a power of two in the published models.
        layer: l, from 0.
        num_layers: L; the factor of the layer is 1 + 1e-5 if there is only one.

    Returns:
        float32 [heads].

    Source: Qin et al., TransNormerLLM (2023), section 3.1; MiniMax-01 (2025).
    """
    heads, layer, num_layers = _check(heads, layer, num_layers)
    slopes = 2.0 ** (-8 * _count(heads, 1) / heads)
    return (-slopes * (1 - layer / max(num_layers - 1, 1) + 1e-5)).float()


def lightning(heads: int, *, layer: int = 0, num_layers: int = 1) -> Tensor:
    """-(8 / H) (1 - l / L) h, h = 0 .. H - 1: head 0 never decays.

    Args, Returns: as :func:`transnormer`.

    Source: ``lightning_attn`` of flash-linear-attention.
    """
    heads, layer, num_layers = _check(heads, layer, num_layers)
    return (-(8 / heads) * (1 - layer / num_layers) * _count(heads, 0)).float()


def retention(heads: int) -> Tensor:
    """log(1 - 2^(-5 - h)), h = 0 .. H - 1.

    Returns:
        float32 [heads].

    Source: Sun et al., Retentive Network (2023), eq. 8.
    """
    heads, _, _ = _check(heads, 0, 1)
    return torch.log1p(-(2.0 ** (-5 - _count(heads, 0)))).float()


def _count(heads: int, first: int) -> Tensor:
    return torch.arange(first, first + heads, dtype=torch.float64)


def _check(heads: int, layer: int, num_layers: int) -> tuple[int, int, int]:
    heads = checks.check_int("heads", heads)
    layer = checks.check_int("layer", layer, 0)
    num_layers = checks.check_int("num_layers", num_layers)
    if layer >= num_layers:
        raise ValueError(f"layer is {layer}; it must be from 0 to num_layers - 1, {num_layers - 1}")
    return heads, layer, num_layers
