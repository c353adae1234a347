"""Operators of papers, composed of linear and dense attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn import capabilities
from tileattn._common import checks
from tileattn._common.precision import autocast_all, autocast_bias, range_factor
from tileattn.backend import resolve_backend
from tileattn.dense import attention
from tileattn.linear import linear_attention, segment_state
from tileattn.linear.feature_maps import FeatureMap
from tileattn.reference.precision import exact_dtype, no_autocast

__all__ = [
    "agent_attention",
    "clamped_linear_attention",
    "prefix_linear_attention",
    "softmax_rnn_attention",
]

FINALIZERS = ("sum", "count", "l2", "rms")


def prefix_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    *,
    feature_map: str | FeatureMap | None = None,
    normalize: bool = True,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Causal linear attention in which every token also sees the whole prefix.

    Args:
        q: [B, T, Hq, D]; k: [B, T, Hkv, D]; v: [B, T, Hkv, Dv].
        prefix_k: [B, P, Hkv, D]; prefix_v: [B, P, Hkv, Dv]: seen by all T tokens, in no order.
        feature_map, normalize, scale, backend: as in :func:`tileattn.linear_attention`.

    Returns:
        [B, T, Hq, Dv] of q's dtype, differentiable in all tensors.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``linear_attention``.

    Source: Arora et al., Just Read Twice (2024), section 4 (prefix linear attention).
    """
    options: dict[str, Any] = {
        "feature_map": feature_map,
        "normalize": normalize,
        "backend": backend,
    }
    state = segment_state(prefix_k, prefix_v, **options)
    group = q.shape[2] // k.shape[2] if k.shape[2] > 0 else 1
    if group > 1:  # a state for each query head
        parts = state if isinstance(state, tuple) else (state,)
        repeated = tuple(part.repeat_interleave(group, dim=1) for part in parts)
        state = (repeated[0], repeated[1]) if len(repeated) == 2 else repeated[0]
    out: Tensor = linear_attention(q, k, v, initial_state=state, scale=scale, **options)
    return out


def clamped_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: Tensor | None = None,
    minimum: float = 100.0,
    backend: str | None = None,
) -> Tensor:
    """q (K^T V tau) / max(q . sum of k, minimum), with q and k through relu; not causal.

    Args:
        q: [B, T, Hq, D]; k: [B, T, Hkv, D]; v: [B, T, Hkv, Dv].
        temperature: tau [Hq], learned; 1 by default.
        minimum: of the denominator, >= 0; below it, no gradient passes through it.
        backend: as in :func:`tileattn.linear_attention`.

    Returns:
        [B, T, Hq, Dv] of q's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``linear_attention``.

    Source: Zheng, L2ViT: the linear transformer is secretly a local and global learner (2025),
    ReLU linear attention with a clamped denominator.
    """
    minimum = checks.check_number("minimum", minimum, minimum=0.0)
    q, k, v = autocast_all(q, k, v)
    # A mean of values is in their range, unlike its numerator.
    mean = linear_attention(
        q, k, v, feature_map="relu", normalize=True, causal=False, backend=backend
    )
    exact = exact_dtype(q.dtype)
    factor = torch.ones(q.shape[:-1], dtype=exact, device=q.device)
    if minimum > 0:
        total = k.relu().sum(1, dtype=exact).repeat_interleave(q.shape[2] // k.shape[2], dim=1)
        with no_autocast(q.device):
            denominator = torch.einsum("bthd,bhd->bth", q.relu().to(exact), total)
        factor = (denominator / minimum).clamp(max=1.0)
    if temperature is not None:
        factor = factor * temperature.to(exact)
    out: Tensor = (mean * factor.unsqueeze(-1)).to(mean.dtype)
    return out


def takes_float32(x: Tensor, backend: str | None) -> bool:
    """Whether float16 tensors may as well be float32 ones in a call between others."""
    return not capabilities.why_not(resolve_backend(backend, x.device), "float32")


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    *,
    gather_bias: Tensor | None = None,
    spread_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q A^T + spread_bias) (softmax(scale A k^T + gather_bias) v).

    A few agents A stand between queries and keys: two small softmax attentions in the place of a
    large one, linear in the number of tokens.

    Args:
        q: [B, Sq, H, D]; k: [B, Sk, H, D]; v: [B, Sk, H, Dv].
        agents: A [B, n, H, D], usually pooled from q (49 in the paper).
        gather_bias: [B or 1, H or 1, n or 1, Sk]; spread_bias: [B or 1, H or 1, Sq or 1, n].
        scale, backend: as in :func:`tileattn.attention`.

    Returns:
        [B, Sq, H, Dv] of q's dtype, differentiable in all tensors.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``attention``.

    What the agents gather and its gradient, a sum over the queries, are in float32 for float16 on
    backends that take it; on CUDA they are tensors of q's dtype.

    Source: Han et al., Agent Attention (2023), eq. 5.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v), ("agents", agents)):
        checks.require_tensor(name, tensor)
    q, k, v, agents = autocast_all(q, k, v, agents)
    gather_bias, spread_bias = autocast_bias(gather_bias), autocast_bias(spread_bias)
    widen = q.dtype == torch.float16 and takes_float32(q, backend)

    def attend(*operands: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (t.float() for t in operands) if widen else operands
        bias = bias.float() if widen and bias is not None else bias
        out: Tensor = attention(q, k, v, bias=bias, scale=scale, backend=backend)
        return out

    with no_autocast(q.device):
        gathered = attend(agents, k, v, bias=gather_bias)
        return attend(q, agents, gathered, bias=spread_bias).to(q.dtype)


def softmax_rnn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    finalizer: str = "sum",
    causal: bool = True,
    scale: float | None = None,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """Rows sum_j exp(scale q_i . k_j) v_j, brought to size by a finalizer.

    The recurrent view of softmax attention: its sums are those of a linear attention whose state
    is infinite, and the division by the sum of weights is one way among others to end a row.

    Args:
        q: [B, Sq, H, D]; k: [B, Sk, Hkv, D]; v: [B, Sk, Hkv, Dv].
        finalizer: "sum": divide by the sum of weights (softmax); "count": by the number of keys
            seen; "l2" or "rms": by the row's own norm or root mean square.
        causal, scale, backend: as in :func:`tileattn.attention`.
        eps: added to the mean square of "rms"; the least norm of "l2".

    Returns:
        [B, Sq, H, Dv] of q's dtype.

    Raises:
        ValueError: an unknown finalizer. Others as ``attention``.

    Source: On the Expressiveness of Softmax Attention: A Recurrent Neural Network Perspective
    (2025).
    """
    if finalizer not in FINALIZERS:
        raise ValueError(f"finalizer is {finalizer!r}; allowed: {', '.join(FINALIZERS)}")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.require_tensor(name, tensor)
    causal = checks.check_flag("causal", causal)
    eps = checks.check_number("eps", eps, minimum=0.0)
    options: dict[str, Any] = {"causal": causal, "scale": scale, "backend": backend}
    if finalizer == "sum":
        mean: Tensor = attention(q, k, v, **options)
        return mean
    q, k, v = autocast_all(q, k, v)
    checks.check_qkv(q, k, v, packed=False)
    factor: Tensor | None = None
    if v.dtype == torch.float16:  # rows may be small, their gradients large
        factor = range_factor(v, (1, 3))
        v = (factor * v).to(v.dtype)
    out, lse = attention(q, k, v, return_lse=True, **options)
    rows = out.to(lse.dtype)
    if factor is not None:
        rows = rows / factor.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    if finalizer == "count":
        seen = torch.full((q.shape[1],), k.shape[1], dtype=lse.dtype, device=q.device)
        if causal:
            position = torch.arange(q.shape[1], device=q.device) + (k.shape[1] - q.shape[1])
            seen = (position + 1).clamp(min=1).to(lse.dtype)
        rows = rows * torch.exp(lse - seen.log()[:, None]).unsqueeze(-1)
    elif finalizer == "l2":
        rows = torch.nn.functional.normalize(rows, dim=-1, eps=eps)
    else:
        # The sum of weights cancels, but for eps; like the norm of what softmax gives.
        rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return rows.to(q.dtype)
