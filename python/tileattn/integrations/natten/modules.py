"""NATTEN's modules; its checkpoints load."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tileattn._common import checks
from tileattn.integrations.natten.functional import neighborhood_attention_generic
from tileattn.neighborhood._checks import MAX_RANK, PerAxis
from tileattn.nn.neighborhood import _NeighborhoodAttention


class NeighborhoodAttentionGeneric(_NeighborhoodAttention):
    """Multi-head neighborhood attention over [batch, *grid, channels].

    Args:
        na_dim: grid axes, 1 to 3.
        embed_dim: channels, a multiple of ``num_heads``.
        num_heads: heads.
        kernel_size, stride, dilation, is_causal: as in :func:`neighborhood_attention_generic`.
        qkv_bias: whether the projection to q, k and v adds a bias vector.
        qk_scale: of the scores; None or 0: head_dim ** -0.5.
        proj_drop: dropout of the output.
        device, dtype: of the parameters.

    Attributes:
        na_dim, embed_dim, num_heads, head_dim, scale, kernel_size, stride, dilation, is_causal,
        expected_input_tensor_rank, qkv, proj, proj_drop: as NATTEN's; one entry per axis.

    Raises:
        TypeError, ValueError: channels or windows that do not fit.
    """

    def __init__(
        self,
        na_dim: int,
        embed_dim: int,
        num_heads: int,
        kernel_size: PerAxis,
        stride: PerAxis | None = 1,
        dilation: PerAxis | None = 1,
        is_causal: bool | Sequence[bool] | None = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.rank = checks.check_int("na_dim", na_dim)
        if self.rank > MAX_RANK:
            raise ValueError(f"na_dim is {na_dim}; it must be at most {MAX_RANK}")
        super().__init__(
            embed_dim,
            num_heads,
            window=kernel_size,
            stride=1 if stride is None else stride,
            dilation=1 if dilation is None else dilation,
            causal=False if is_causal is None else is_causal,
            bias=qkv_bias,
            scale=qk_scale or None,
            dropout=proj_drop,
            device=device,
            dtype=dtype,
        )
        self.embed_dim = self.qkv.in_features
        self.scale = self.scale or self.head_dim**-0.5

    @property
    def na_dim(self) -> int:
        return self.rank

    @property
    def expected_input_tensor_rank(self) -> int:
        return self.rank + 2

    @property
    def kernel_size(self) -> PerAxis:
        return self.window

    @kernel_size.setter
    def kernel_size(self, value: PerAxis) -> None:
        self.window = value

    @property
    def is_causal(self) -> bool | Sequence[bool]:
        return self.causal

    @is_causal.setter
    def is_causal(self, value: bool | Sequence[bool]) -> None:
        self.causal = value

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Tensor:
        out = neighborhood_attention_generic(
            q,
            k,
            v,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.is_causal,
            self.scale,
            backend=backend,
        )
        assert isinstance(out, Tensor)
        return out


class _OfRank(NeighborhoodAttentionGeneric):
    """The same without ``na_dim``."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: PerAxis,
        stride: PerAxis | None = 1,
        dilation: PerAxis | None = 1,
        is_causal: bool | Sequence[bool] | None = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            self.rank,
            embed_dim,
            num_heads,
            kernel_size,
            stride,
            dilation,
            is_causal,
            qkv_bias,
            qk_scale,
            proj_drop,
            device=device,
            dtype=dtype,
        )


class NeighborhoodAttention1D(_OfRank):
    """:class:`NeighborhoodAttentionGeneric` over [batch, X, channels]."""

    rank = 1


class NeighborhoodAttention2D(_OfRank):
    """:class:`NeighborhoodAttentionGeneric` over [batch, X, Y, channels]."""

    rank = 2


class NeighborhoodAttention3D(_OfRank):
    """:class:`NeighborhoodAttentionGeneric` over [batch, X, Y, Z, channels]."""

    rank = 3
