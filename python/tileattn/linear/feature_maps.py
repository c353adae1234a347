"""Feature maps of linear attention: phi with phi(q) . phi(k) in the place of exp(q . k).

Each takes [..., D] and returns [..., F] in the same dtype, and is differentiable. What is between
is computed in float32 (float64 for float64). Those with weights are functions here and modules in
:mod:`tileattn.nn`; they are matrix products, and under autocast return its dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tileattn._common import checks
from tileattn._common.precision import autocast_dtype
from tileattn.reference.precision import exact_dtype, no_autocast

FeatureMap = Callable[[Tensor], Tensor]


def elu1(x: Tensor) -> Tensor:
    """1 + elu(x), F = D. Source: Katharopoulos et al., Transformers are RNNs (2020), eq. 7."""
    return F.relu(x) + x.clamp(max=0).exp()  # 1 + (e^x - 1) would lose small e^x


def relu(x: Tensor) -> Tensor:
    """max(x, 0), F = D."""
    return F.relu(x)


def taylor2(x: Tensor) -> Tensor:
    """[1, x / D^(1/4), vec(x x^T) / sqrt(2 D)], F = 1 + D + D^2.

    The inner product of two is 1 + a + a^2 / 2 with a = x . y / sqrt(D), the Taylor series of
    exp(a). By name, the kernels of linear attention use a inside of a chunk and never have the
    features in memory. Source: Arora et al., Based (2024), section 4.
    """
    dim, dtype = x.shape[-1], x.dtype
    x = x.to(exact_dtype(dtype))
    square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * (2 * dim) ** -0.5
    return torch.cat([torch.ones_like(x[..., :1]), x * dim**-0.25, square], -1).to(dtype)


def hedgehog(x: Tensor, weight: Tensor, eps: float = 1e-12) -> Tensor:
    """cat[softmax(x W), softmax(-x W)], each over its own half and at least ``eps``; F = 2 M.

    Args:
        x: [..., H, D].
        weight: [H, D, M], learned, of any floating dtype.
        eps: 0 after rounding to float16.

    Source: Zhang et al., The Hedgehog & the Porcupine (2024), eq. 6, as LoLCATs normalises it.
    """
    eps = checks.check_number("eps", eps, minimum=0.0)
    y = _project(x, weight)
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1).clamp(min=eps).to(autocast_dtype(x))


def hedgehog_joint(x: Tensor, weight: Tensor) -> Tensor:
    """softmax(cat[2 x W, -2 x W]) over both halves together; shapes as in :func:`hedgehog`."""
    y = 2 * _project(x, weight)
    return torch.cat([y, -y], -1).softmax(-1).to(autocast_dtype(x))


def relu_random(x: Tensor, projection: Tensor, bandwidth: float | Tensor = 1.0) -> Tensor:
    """relu(x R / b) / sqrt(M), F = M.

    Args:
        x: [..., D].
        projection: R [D, M], random and fixed, of any floating dtype.
        bandwidth: b > 0, a number or a scalar tensor.

    Source: WERSA (2025), random ReLU features.
    """
    if not isinstance(bandwidth, Tensor):
        bandwidth = checks.check_positive("bandwidth", bandwidth)
    dtype = exact_dtype(x.dtype)
    with no_autocast(x.device):
        projected = x.to(dtype) @ projection.to(dtype)
    features: Tensor = F.relu(projected / bandwidth) * projection.shape[-1] ** -0.5
    return features.to(autocast_dtype(x))


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """Each head by its own matrix."""
    dtype = exact_dtype(x.dtype)
    with no_autocast(x.device):
        return torch.einsum("...hd,hdm->...hm", x.to(dtype), weight.to(dtype))


#: Those without weights, by name.
NAMED: dict[str, FeatureMap] = {"elu1": elu1, "relu": relu, "taylor2": taylor2}


def feature_map_of(value: str | FeatureMap | None) -> FeatureMap | None:
    """The function that a ``feature_map`` argument stands for.

    Raises:
        ValueError: an unknown name. TypeError: neither a name nor callable.
    """
    if value is None or (callable(value) and not isinstance(value, str)):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"feature_map is {value!r} ({type(value).__name__}); it must be None, a name or a "
            "function [..., D] -> [..., F]"
        )
    if value not in NAMED:
        raise ValueError(f"feature_map is {value!r}; allowed names: {', '.join(NAMED)}")
    return NAMED[value]
