"""Neighborhood attention on one, two or three axes as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tileattn._common.checks import check_flag, check_number
from tileattn.neighborhood import neighborhood_attention
from tileattn.neighborhood._checks import PerAxis, check_spec, per_axis
from tileattn.neighborhood.unfused import neighborhood_av, neighborhood_qk, relative_positions
from tileattn.nn._sizes import check_heads, check_kv_heads
from tileattn.nn.resettable import ResettableModule


class _NeighborhoodAttention(ResettableModule):
    """Multi-head neighborhood attention with its projections; ``rank`` is that of the grid."""

    rank: int

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window: PerAxis,
        stride: PerAxis = 1,
        dilation: PerAxis = 1,
        causal: bool | Sequence[bool] = False,
        num_kv_heads: int | None = None,
        bias: bool = True,
        relative_bias: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim, num_heads, self.head_dim = check_heads(embed_dim, num_heads)
        num_kv_heads = check_kv_heads(num_heads, num_kv_heads)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        windows = per_axis("window", window, self.rank, 2)
        dilations = per_axis("dilation", dilation, self.rank, 1)
        smallest = [w * d for w, d in zip(windows, dilations, strict=True)]
        spec = check_spec(smallest, windows, stride, dilations, causal)  # else told by a forward
        self.window: PerAxis = spec.window
        self.stride: PerAxis = spec.stride
        self.dilation: PerAxis = spec.dilation
        self.causal: bool | Sequence[bool] = tuple(map(bool, spec.causal))
        self.scale = None if scale is None else check_number("scale", scale)
        bias = check_flag("bias", bias)
        channels = (num_heads + 2 * num_kv_heads) * self.head_dim
        self.qkv = nn.Linear(embed_dim, channels, bias=bias, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(check_number("dropout", dropout, minimum=0.0))
        self.rpb: nn.Parameter | None = None
        if check_flag("relative_bias", relative_bias):
            table = (num_heads, *(2 * w - 1 for w in windows))
            self.rpb = nn.Parameter(torch.empty(table, device=device, dtype=dtype))
        self._reset_own()

    def _reset_own(self) -> None:
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor, *, backend: str | None = None) -> Tensor:
        """Attention among the tokens of a grid.

        Args:
            x: [B, *grid, C].
            backend: as in :func:`tileattn.neighborhood_attention`; not with a relative bias,
                which is plain PyTorch.

        Returns:
            [B, *grid, C].
        """
        channels = self.qkv.in_features
        if x.dim() != self.rank + 2 or x.shape[-1] != channels:
            raise ValueError(
                f"x has shape {list(x.shape)}; it must be [batch, *grid, channels] with "
                f"{self.rank} grid axes and {channels} channels"
            )
        sizes = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split(sizes, dim=-2)
        out = self._attend(q, k, v, backend)
        result: Tensor = self.proj_drop(self.proj(out.flatten(-2)))
        return result

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Tensor:
        if self.rpb is not None:
            return self._with_relative_bias(q, k, v, self.rpb)
        return neighborhood_attention(
            q,
            k,
            v,
            window=self.window,
            stride=self.stride,
            dilation=self.dilation,
            causal=self.causal,
            scale=self.scale,
            backend=backend,
        )

    def _with_relative_bias(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        window, stride, dilation, causal = self.window, self.stride, self.dilation, self.causal
        scores = neighborhood_qk(
            q, k, window=window, stride=stride, dilation=dilation, causal=causal, scale=self.scale
        )
        index = relative_positions(
            q.shape[1:-2],
            window=window,
            stride=stride,
            dilation=dilation,
            causal=causal,
            device=q.device,
        )
        bias = table.flatten(1)[:, index].movedim(0, -2)  # [*grid, heads, slots]
        weights = torch.softmax(scores + bias, dim=-1).to(v.dtype)
        return neighborhood_av(
            weights, v, window=window, stride=stride, dilation=dilation, causal=causal
        )

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, window={self.window}, stride={self.stride}, "
            f"dilation={self.dilation}, causal={self.causal}, "
            f"relative_bias={self.rpb is not None}"
        )


_DOC = """Multi-head neighborhood attention over a grid of {axes}, with its projections.

    ``qkv``, ``proj`` and ``rpb`` are named and laid out as in NATTEN's modules.

    Args:
        embed_dim: channels C of the input and output, a multiple of ``num_heads``.
        num_heads: query heads.
        window, stride, dilation, causal, scale: as in :func:`tileattn.neighborhood_attention`.
        num_kv_heads: key and value heads, a divisor of ``num_heads``; ``num_heads`` by default.
        bias: whether the projection to q, k and v adds a bias vector.
        relative_bias: learn a bias per head and relative position of the key. This goes the
            unfused way (:func:`tileattn.neighborhood_qk`), which is slower.
        dropout: of the output.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: channels, head counts or windows that do not fit.
    """


class NeighborhoodAttention1d(_NeighborhoodAttention):
    __doc__ = _DOC.format(axes="one axis, [B, X, C]")
    rank = 1


class NeighborhoodAttention2d(_NeighborhoodAttention):
    __doc__ = _DOC.format(axes="two axes, [B, X, Y, C]")
    rank = 2


class NeighborhoodAttention3d(_NeighborhoodAttention):
    __doc__ = _DOC.format(axes="three axes, [B, X, Y, Z, C]")
    rank = 3
