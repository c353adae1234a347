"""Operators composed of linear and softmax attention, each from its definition, quadratic."""

from __future__ import annotations

import torch
from torch import Tensor


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


def clamped_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, temperature: Tensor | None = None, minimum: float = 100.0
) -> Tensor:
    """As :func:`tileattn.clamped_linear_attention`."""
    weights = _products(q.relu(), k.relu())
    out = weights / weights.sum(-1, keepdim=True).clamp(min=minimum)
    if temperature is not None:
        out = out * temperature[:, None, None]
    return _mix(out, v)


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
