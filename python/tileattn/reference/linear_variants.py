"""Operators composed of linear and softmax attention, each from its definition, quadratic.

Half precision is computed in float32 and returned in q's dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tileattn.reference.precision import exact_dtype, no_autocast

Function = TypeVar("Function", bound=Callable[..., Tensor])


def _exact(function: Function) -> Function:
    @functools.wraps(function)
    def call(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        def wide(x: Any) -> Any:
            return x.to(exact_dtype(q.dtype)) if isinstance(x, Tensor) else x

        options = {name: wide(value) for name, value in options.items()}
        with no_autocast(q.device):
            return function(wide(q), *map(wide, rest), **options).to(q.dtype)

    return cast(Function, call)


@_exact
def prefix_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, *, normalize: bool = True
) -> Tensor:
    """Weights q . k over the whole prefix and the tokens so far; features already applied."""
    keys, values = torch.cat([prefix_k, k], 1), torch.cat([prefix_v, v], 1)
    weights = _products(q, keys)
    weights = weights.tril(prefix_k.shape[1])
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    else:
        weights = weights * q.shape[-1] ** -0.5
    return _mix(weights, values)


@_exact
def clamped_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, temperature: Tensor | None = None, minimum: float = 100.0
) -> Tensor:
    """As :func:`tileattn.clamped_linear_attention`."""
    weights = _products(q.relu(), k.relu())
    out = weights / weights.sum(-1, keepdim=True).clamp(min=minimum)
    if temperature is not None:
        out = out * temperature[:, None, None]
    return _mix(out, v)


@_exact
def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    *,
    gather_bias: Tensor | float = 0.0,
    spread_bias: Tensor | float = 0.0,
) -> Tensor:
    """As :func:`tileattn.agent_attention`."""
    scale = q.shape[-1] ** -0.5
    gathered = _mix((scale * _products(agents, k) + gather_bias).softmax(-1), v)
    return _mix((scale * _products(q, agents) + spread_bias).softmax(-1), gathered)


@_exact
def softmax_rnn_attention(
    q: Tensor, k: Tensor, v: Tensor, *, finalizer: str = "sum", causal: bool = True
) -> Tensor:
    """As :func:`tileattn.softmax_rnn_attention`, for as many queries as keys and eps 0."""
    weights = (q.shape[-1] ** -0.5 * _products(q, k)).exp()
    if causal:
        weights = weights.tril()
    rows = _mix(weights, v)
    if finalizer == "sum":
        divisor = weights.sum(-1)
    elif finalizer == "count":
        divisor = (weights > 0).sum(-1).to(rows.dtype)
    elif finalizer == "l2":
        divisor = rows.norm(dim=-1).transpose(1, 2)
    else:
        divisor = rows.square().mean(-1).sqrt().transpose(1, 2)
    out: Tensor = rows / divisor.transpose(1, 2).unsqueeze(-1)
    return out


def _products(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, Sq, Sk]."""
    return torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2))


def _mix(weights: Tensor, v: Tensor) -> Tensor:
    """[B, Sq, H, Dv]."""
    v = v.repeat_interleave(weights.shape[1] // v.shape[2], 2)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


@_exact
def local_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, ridge: float = 10.0, causal: bool = True
) -> Tensor:
    """As :func:`tileattn.local_linear_attention`, with the matrices formed and solved."""
    p = _softmax(q, k, causal)
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    z = k.transpose(1, 2).unsqueeze(2) - q.transpose(1, 2).unsqueeze(3)  # [B, H, Sq, Sk, D]
    matrix = torch.einsum("bhij,bhijd,bhije->bhide", p, z, z)
    matrix = matrix + ridge * torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    rho = torch.linalg.solve(matrix, torch.einsum("bhij,bhijd->bhid", p, z))
    c = p * (1 - torch.einsum("bhijd,bhid->bhij", z, rho))
    return _mix(c / c.sum(-1, keepdim=True), v)


@_exact
def parallax_attention(
    q: Tensor, r: Tensor, k: Tensor, v: Tensor, *, causal: bool = True
) -> Tensor:
    """As :func:`tileattn.parallax_attention`: softmax attention less a covariance."""
    p, u = _softmax(q, k, causal), _products(r, k)
    mean = (p * u).sum(-1, keepdim=True)
    return _mix(p, v) - _mix(p * (u - mean), v)


@_exact
def wersa_attention(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, projection: Tensor, *, bandwidth: float = 1.0
) -> Tensor:
    """As :func:`tileattn.wersa_attention`, by the matrix of the transform."""
    transform, band = _haar(q.shape[1], gains.shape[-2 if gains.dim() == 3 else 0] - 1)
    transform = transform.to(q)
    own = gains[band] if gains.dim() == 1 else gains[:, band]
    own = own[None, :, None, None] if gains.dim() == 1 else own[..., None]

    def features(x: Tensor) -> Tensor:
        bands = own * torch.einsum("nt,bthd->bnhd", transform, x)
        filtered = torch.einsum("nt,bnhd->bthd", transform, bands)
        random: Tensor = torch.relu(filtered @ projection / bandwidth)
        scaled: Tensor = random * projection.shape[-1] ** -0.5
        return scaled

    weights = _products(features(q), features(k))
    total = weights.sum(-1, keepdim=True)
    return _mix(weights / total.masked_fill(total == 0, 1.0), v)


def _haar(tokens: int, levels: int) -> tuple[Tensor, Tensor]:
    """The orthonormal transform [padded tokens, tokens] and the band of each of its rows."""
    padded = -(-tokens // (1 << levels)) * (1 << levels)
    rows, bands = [], []
    for level in range(levels + 1):
        size = 1 << min(level + 1, levels)  # tokens of a block
        for start in range(0, padded, size):
            row = torch.zeros(padded, dtype=torch.float64)
            row[start : start + size] = size**-0.5
            if level < levels:  # a detail: one half of the block against the other
                row[start + size // 2 : start + size] *= -1
            rows.append(row)
            bands.append(level)
    return torch.stack(rows)[:, :tokens], torch.tensor(bands)


def _softmax(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """[B, H, Sq, Sk]; causal from the end."""
    scores = q.shape[-1] ** -0.5 * _products(q, k)
    if causal:
        seen = torch.ones_like(scores, dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        scores = scores.masked_fill(~seen, -torch.inf)
    weights: Tensor = scores.softmax(-1)
    return weights
