"""Functions and modules under the names and with the arguments of NATTEN.

    from tileattn.integrations.natten import na2d

takes the place of ``from natten import na2d``. Tensors are [batch, *grid, heads, head_dim] there
as here; windows, strides, dilations and causal axes mean the same. Arguments that only tune
NATTEN's kernels (tile shapes, backends, schedules) are taken and have no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tileattn import neighborhood
from tileattn._neighborhood_checks import PerAxis
from tileattn.nn import neighborhood as modules

#: Keywords of NATTEN that change how fast its kernels are, not what they compute.
TUNING = frozenset(
    (
        "attention_kwargs",
        "backend",
        "backward_kv_splits",
        "backward_kv_tile_shape",
        "backward_q_tile_shape",
        "backward_use_pt_reduction",
        "kernel_schedule",
        "kv_tile_shape",
        "q_tile_shape",
        "run_persistent_kernel",
        "torch_compile",
        "try_token_permute",
    )
)


def na1d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: PerAxis, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention over [batch, X, heads, head_dim]; see :func:`na2d`."""
    return _na(1, query, key, value, kernel_size, **options)


def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: PerAxis, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention over [batch, X, Y, heads, head_dim].

    Args:
        query, key, value: as q, k and v of :func:`tileattn.neighborhood_attention`.
        kernel_size: its ``window``.
        options: ``stride``, ``dilation``, ``is_causal``, ``scale``, ``additional_keys``,
            ``additional_values`` and ``return_lse``, which are its ``stride``, ``dilation``,
            ``causal``, ``scale``, ``extra_keys``, ``extra_values`` and ``return_lse``; and
            those of :data:`TUNING`, which do nothing.

    Returns:
        out, or (out, lse) with ``return_lse``, as :func:`tileattn.neighborhood_attention`.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`tileattn.neighborhood_attention`.
    """
    return _na(2, query, key, value, kernel_size, **options)


def na3d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: PerAxis, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention over [batch, X, Y, Z, heads, head_dim]; see :func:`na2d`."""
    return _na(3, query, key, value, kernel_size, **options)


def _na(
    rank: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis | None = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **tuning: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    if unknown := sorted(tuning.keys() - TUNING):
        raise TypeError(f"na{rank}d() has no argument {unknown[0]!r}")
    if isinstance(query, Tensor) and query.dim() != rank + 3:
        raise ValueError(
            f"query has shape {list(query.shape)}; na{rank}d takes [batch, *grid, heads, head_dim] "
            f"with {rank} grid axes"
        )
    out, lse = neighborhood.neighborhood_attention(
        query,
        key,
        value,
        window=kernel_size,
        stride=stride,
        dilation=1 if dilation is None else dilation,
        causal=False if is_causal is None else is_causal,
        scale=scale,
        extra_keys=additional_keys,
        extra_values=additional_values,
        return_lse=True,
    )
    return (out, lse) if return_lse else out


class _Arguments(modules._NeighborhoodAttention):
    """NATTEN's arguments for our modules."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        dilation: PerAxis | None = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            window=kernel_size,
            stride=stride,
            dilation=1 if dilation is None else dilation,
            causal=is_causal,
            bias=qkv_bias,
            scale=qk_scale,
            dropout=proj_drop,
            device=device,
            dtype=dtype,
        )


class NeighborhoodAttention1D(_Arguments):
    """NATTEN's module over [batch, X, channels]; its checkpoints load."""

    rank = 1


class NeighborhoodAttention2D(_Arguments):
    """NATTEN's module over [batch, X, Y, channels]; its checkpoints load."""

    rank = 2


class NeighborhoodAttention3D(_Arguments):
    """NATTEN's module over [batch, X, Y, Z, channels]; its checkpoints load."""

    rank = 3
