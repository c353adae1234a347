"""Modules around the composed operators: each projects x to queries, keys and values and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tileattn._common.checks import check_flag, check_int, check_number, check_positive
from tileattn.linear.feature_maps import FeatureMap
from tileattn.linear.local import local_linear_attention, parallax_attention
from tileattn.linear.variants import (
    clamped_linear_attention,
    prefix_linear_attention,
    softmax_rnn_attention,
)
from tileattn.linear.wersa import wersa_attention
from tileattn.nn._sizes import check_heads
from tileattn.nn.feature_maps import draw_projection
from tileattn.nn.resettable import ResettableModule
from tileattn.reference.precision import exact_dtype


class SelfAttentionModule(ResettableModule):
    """One projection to q, k, v (and more, ``parts`` in all), one back; no bias vectors.

    Args:
        embed_dim: channels C of the input and output, a multiple of ``num_heads``.
        num_heads: H.
        device, dtype: of the parameters.

    Raises:
        ValueError: channels that the heads do not divide.
    """

    parts = 3

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = check_heads(embed_dim, num_heads)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qkv_proj = nn.Linear(
            self.embed_dim, self.parts * self.embed_dim, bias=False, **factory
        )
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, bias=False, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, T, C] to ``parts`` tensors [B, T, H, D]."""
        return self.heads(self.qkv_proj(x), self.parts)

    def heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        split: tuple[Tensor, ...] = x.unflatten(-1, (parts, self.num_heads, self.head_dim)).unbind(
            -3
        )
        return split

    def merge(self, out: Tensor) -> Tensor:
        """[B, T, H, D] to [B, T, C]."""
        result: Tensor = self.out_proj(out.flatten(-2))
        return result

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"


class PrefixLinearAttention(SelfAttentionModule):
    """Causal linear attention that also sees a whole prefix, by projections of its own.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        feature_map: as in :func:`tileattn.linear_attention`.

    Source: Arora et al., Just Read Twice (2024), section 4.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        feature_map: str | FeatureMap = "elu1",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        self.feature_map = feature_map
        self.prefix_proj = nn.Linear(
            self.embed_dim, 2 * self.embed_dim, bias=False, device=device, dtype=dtype
        )

    def forward(self, x: Tensor, prefix: Tensor, *, backend: str | None = None) -> Tensor:
        """x [B, T, C] and prefix [B, P, C] to [B, T, C]."""
        q, k, v = self.project(x)
        prefix_k, prefix_v = self.heads(self.prefix_proj(prefix), 2)
        out = prefix_linear_attention(
            q, k, v, prefix_k, prefix_v, feature_map=self.feature_map, backend=backend
        )
        return self.merge(out)


class ClampedLinearAttention(SelfAttentionModule):
    """L2ViT's global attention: relu features, clamped denominator, a learned factor per head.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        minimum: of the denominators.

    Source: Zheng, L2ViT (2025).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        minimum: float = 100.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        self.minimum = check_number("minimum", minimum, minimum=0.0)
        self.temperature = nn.Parameter(torch.empty(self.num_heads, device=device, dtype=dtype))
        self._reset_own()

    def _reset_own(self) -> None:
        nn.init.ones_(self.temperature)

    def forward(self, x: Tensor, *, backend: str | None = None) -> Tensor:
        """[B, T, C] to [B, T, C]; all tokens see all."""
        q, k, v = self.project(x)
        out = clamped_linear_attention(
            q, k, v, temperature=self.temperature, minimum=self.minimum, backend=backend
        )
        return self.merge(out)


class LocalLinearAttention(SelfAttentionModule):
    """Self-attention by :func:`tileattn.local_linear_attention`, causal by default.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        ridge, iterations, causal: as in the function.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        ridge: float = 10.0,
        iterations: int = 32,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        self.ridge = check_positive("ridge", ridge)
        self.iterations = check_int("iterations", iterations)
        self.causal = check_flag("causal", causal)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        q, k, v = self.project(x)
        out = local_linear_attention(
            q, k, v, ridge=self.ridge, iterations=self.iterations, causal=self.causal
        )
        return self.merge(out)


class ParallaxAttention(SelfAttentionModule):
    """Self-attention by :func:`tileattn.parallax_attention`, with a fourth projection for r.

    r starts at 0, as softmax attention.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        causal: as in the function.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        self.causal = check_flag("causal", causal)
        self.r_proj = nn.Linear(
            self.embed_dim, self.embed_dim, bias=False, device=device, dtype=dtype
        )
        self._reset_own()

    def _reset_own(self) -> None:
        nn.init.zeros_(self.r_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        q, k, v = self.project(x)
        (r,) = self.heads(self.r_proj(x), 1)
        return self.merge(parallax_attention(q, r, k, v, causal=self.causal))


class SoftmaxRnnAttention(SelfAttentionModule):
    """Self-attention by :func:`tileattn.softmax_rnn_attention`.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        finalizer, causal: as in the function.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        finalizer: str = "rms",
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        self.finalizer, self.causal = finalizer, check_flag("causal", causal)

    def forward(self, x: Tensor, *, backend: str | None = None) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        q, k, v = self.project(x)
        out = softmax_rnn_attention(
            q, k, v, finalizer=self.finalizer, causal=self.causal, backend=backend
        )
        return self.merge(out)


class WersaAttention(SelfAttentionModule):
    """Bidirectional attention of wavelet-filtered queries and keys through random features.

    A small network reads the mean token and gives each head a gain per band, between 0 and the
    learned scale of the band.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        levels: L of the wavelet transform.
        features: M, random ones.
        generator: of the random numbers; torch's default one if None.

    Source: Dentamaro, WERSA (2025).
    """

    projection: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        levels: int = 2,
        features: int = 256,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        self.bands = check_int("levels", levels) + 1
        features = check_int("features", features)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.filter = nn.Sequential(
            nn.Linear(self.embed_dim, self.embed_dim // 2 + 1, **factory),
            nn.ReLU(),
            nn.Linear(self.embed_dim // 2 + 1, self.bands * self.num_heads, **factory),
            nn.Sigmoid(),
        )
        self.band_scale = nn.Parameter(torch.empty(self.bands, **factory))
        self.log_bandwidth = nn.Parameter(torch.empty((), **factory))
        self.register_buffer("projection", torch.empty(self.head_dim, features, **factory))
        self._reset_own(generator)

    def _reset_own(self, generator: torch.Generator | None = None) -> None:
        nn.init.ones_(self.band_scale)
        nn.init.zeros_(self.log_bandwidth)
        draw_projection(self.projection, generator)

    def forward(self, x: Tensor, *, backend: str | None = None) -> Tensor:
        """[B, T, C] to [B, T, C]; all tokens see all."""
        q, k, v = self.project(x)
        gains = self.filter(x.mean(1)).unflatten(-1, (self.bands, self.num_heads))
        out = wersa_attention(
            q,
            k,
            v,
            gains * self.band_scale[:, None],
            self.projection,
            bandwidth=self.log_bandwidth.to(exact_dtype(x.dtype)).exp(),
            backend=backend,
        )
        return self.merge(out)
