"""WERSA: queries and keys filtered by wavelets along the sequence, then random features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tileattn._common import checks
from tileattn._common.precision import range_factor
from tileattn.linear import linear_attention
from tileattn.linear.feature_maps import relu_random
from tileattn.reference.precision import exact_dtype, no_autocast

__all__ = ["haar_filter", "wersa_attention"]


def haar_filter(x: Tensor, gains: Tensor) -> Tensor:
    """Scales each band of the Haar transform of x along its tokens, and transforms back.

    What level l adds, from the finest, is the mean over blocks of 2^(l-1) tokens less that over
    blocks of 2^l; the last band is the mean over the largest blocks. Tokens are padded with zeros
    to whole blocks. Gains of 1 give x back.

    Args:
        x: [B, T, H, D].
        gains: [L + 1], or [B, L + 1, H] for each sequence and head; L levels.

    Returns:
        [B, T, H, D] of x's dtype, differentiable in both.

    Raises:
        TypeError: no tensor. ValueError: shapes that do not fit.
    """
    for name, tensor in (("x", x), ("gains", gains)):
        checks.require_tensor(name, tensor)
    if x.dim() != 4:
        raise ValueError(f"x has shape {list(x.shape)}; it must be [batch, tokens, heads, dim]")
    full = (x.shape[0], gains.shape[1] if gains.dim() == 3 else 1, x.shape[2])
    if gains.dim() not in (1, 3) or (gains.dim() == 3 and tuple(gains.shape) != full):
        raise ValueError(
            f"gains has shape {list(gains.shape)}; it must be [levels + 1] or [batch, levels + 1, "
            f"heads] with batch {x.shape[0]} and heads {x.shape[2]}"
        )
    exact = exact_dtype(x.dtype)
    bands = gains.to(exact).unbind(0 if gains.dim() == 1 else 1)
    if gains.dim() == 3:
        bands = tuple(gain[:, None, :, None] for gain in bands)
    tokens, padding = x.shape[1], (1 << (len(bands) - 1)) - 1  # enough to fill any last block
    coarse = F.pad(x.to(exact), (0, 0, 0, 0, 0, padding))
    position = torch.arange(tokens + padding, device=x.device)
    filtered = torch.zeros_like(coarse)
    for level, gain in enumerate(bands[:-1]):
        # Every token holds the mean of its block; its bit ``level`` tells the block's two halves.
        # What would be paired with tokens beyond the padding is in no block of a token of x.
        partner = (position ^ (1 << level)).clamp(max=tokens + padding - 1)
        fine, coarse = coarse, (coarse + coarse.index_select(1, partner)) / 2
        filtered = filtered + gain * (fine - coarse)
    return (filtered + bands[-1] * coarse)[:, :tokens].to(x.dtype)


def wersa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: Tensor,
    projection: Tensor,
    *,
    bandwidth: float | Tensor = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Normalized linear attention of wavelet-filtered queries and keys through random features.

    The filter mixes tokens in both directions, so there is no causal form.

    Args:
        q: [B, T, H, D]; k: [B, T, H, D]; v: [B, T, H, Dv].
        gains: of the bands of q and k, as in :func:`haar_filter`.
        projection: R [D, M], random and fixed; see :func:`tileattn.feature_maps.relu_random`.
        bandwidth: b > 0, a number or a learned scalar.
        backend: as in :func:`tileattn.linear_attention`.

    Returns:
        [B, T, H, Dv] of q's dtype, differentiable in all tensors.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``linear_attention``.

    Source: Dentamaro, WERSA (2025).
    """

    def features(x: Tensor) -> Tensor:
        exact = x.to(exact_dtype(x.dtype))
        with no_autocast(x.device):
            found = relu_random(haar_filter(exact, gains), projection, bandwidth)
        # A factor of all tokens cancels.
        return found * range_factor(found, (1, 3)) if x.dtype == torch.float16 else found

    return linear_attention(
        q, k, v, feature_map=features, normalize=True, causal=False, backend=backend
    )
