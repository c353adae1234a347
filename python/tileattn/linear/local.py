"""Local linear attention and Parallax: softmax attention with a linear correction per query.

Both are plain PyTorch, with no kernel of their own: blocks of queries meet all keys, so memory
grows with the number of keys, not with its square; the backward computes each block again. Programs
of torch.export have one block of all queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tileattn._common import checks, transforms
from tileattn._common.precision import autocast_all
from tileattn.linear._local_op import corrected, fitted
from tileattn.reference.precision import exact_dtype, no_autocast

__all__ = ["local_linear_attention", "parallax_attention"]

_BLOCK = 128  # queries whose scores are in memory at a time


def local_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    ridge: float = 10.0,
    iterations: int = 32,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """The value at each query of a linear function fitted to the keys and values around it.

    With softmax weights p_j and z_j = k_j - q: rho solves (sum of p z z^T + ridge I) rho = sum of
    p z by conjugate gradients that never form the matrix, and out = sum of c_j v_j / sum of c_j
    with c_j = p_j (1 - rho . z_j). A large ridge gives softmax attention. The gradient is that of
    the exact solution, by one more solve.

    Args:
        q: [B, Sq, Hq, D] any floating dtype; k: [B, Sk, Hkv, D]; v: [B, Sk, Hkv, Dv].
        ridge: > 0, beside weights that add to 1.
        iterations: steps of conjugate gradients; D of them solve exactly, but for rounding.
        causal: query i sees keys up to i + Sk - Sq; then Sq <= Sk.
        scale: of the scores; D ** -0.5 by default.

    Returns:
        [B, Sq, Hq, Dv] of q's dtype, computed in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: arguments of wrong types, shapes or values.

    Source: Zuo et al., Local Linear Attention (2025), eqs. 8-10; weights here are normalized.
    """
    ridge = checks.check_positive("ridge", ridge)
    iterations = checks.check_int("iterations", iterations)

    def attend(p: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rho = fitted(p, q, k, ridge, iterations)
        c = corrected(p, q, k, rho)
        return c @ v / c.sum(-1, keepdim=True)

    return _by_blocks(attend, q, (q,), k, v, causal, scale)


def parallax_attention(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """sum over j of p_j (1 + sum over l of p_l u_l - u_j) v_j, with u = r . k, p the softmax.

    A learned projection r takes the place of the solution in local linear attention: out is that of
    softmax attention less the covariance of values and keys, probed by r.

    Args:
        r: [B, Sq, Hq, D], like q. Others, Returns, Raises: as in :func:`local_linear_attention`.

    Source: Zuo et al., Parallax (2026).
    """
    checks.require_tensor("r", r)
    if isinstance(q, Tensor) and (r.shape != q.shape or r.dtype != q.dtype):
        raise ValueError(f"r is {checks.describe(r)}; it must be like q, {checks.describe(q)}")

    def attend(p: Tensor, r: Tensor, k: Tensor, v: Tensor) -> Tensor:
        u = r @ k.mT
        return (p * (1 + (p * u).sum(-1, keepdim=True) - u)) @ v

    return _by_blocks(attend, q, (r,), k, v, causal, scale)


def _by_blocks(
    attend: Callable[..., Tensor],
    q: Tensor,
    per_query: Iterable[Tensor],
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """attend(p, *per_query, k, v) for blocks of queries, all [B, H, tokens, D]."""
    causal = checks.check_flag("causal", causal)
    q, k, v, *per_query = autocast_all(q, k, v, *per_query)
    checks.check_qkv(q, k, v, packed=False)
    shift = k.shape[1] - q.shape[1]
    if k.shape[1] == 0 or (causal and shift < 0):
        raise ValueError(
            f"k has {k.shape[1]} tokens; there must be at least one, and with causal=True at least "
            f"those of q, {q.shape[1]}"
        )
    scale = checks.check_scale(scale, q.shape[-1])
    exact = exact_dtype(q.dtype)
    group = q.shape[2] // k.shape[2]
    heads_first = [t.transpose(1, 2).to(exact) for t in (q, *per_query, k, v)]
    *rows, k, v = heads_first
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))

    def block(first: int, q: Tensor, *rest: Tensor) -> Tensor:
        *own, k, v = rest
        scores = scale * q @ k.mT
        if causal:
            last = torch.arange(q.shape[2], device=q.device)[:, None] + (first + shift)
            future = torch.arange(k.shape[2], device=q.device) > last
            scores = scores.masked_fill(future, -torch.inf)
        return attend(scores.softmax(-1), *own, k, v)

    outs = []
    # Autocast would round the products.
    with no_autocast(q.device):
        # An exported program cannot repeat a block as often as its length asks for.
        if torch.compiler.is_exporting():
            return block(0, *rows, k, v).transpose(1, 2).to(q.dtype)
        for first in range(0, q.shape[1], _BLOCK):
            parts = [t[:, :, first : first + _BLOCK] for t in rows]
            # torch.func knows no tensors that are saved as something else, and a checkpoint lets
            # a backward through a tangent of softmax, which torch refuses, be wrong instead.
            if torch.is_grad_enabled() and not transforms.active():
                out = checkpoint(block, first, *parts, k, v, use_reentrant=False)
            else:
                out = block(first, *parts, k, v)
            outs.append(out)
        out = torch.cat(outs, 2) if outs else v.new_zeros((*rows[0].shape[:-1], v.shape[-1]))
    return out.transpose(1, 2).to(q.dtype)
