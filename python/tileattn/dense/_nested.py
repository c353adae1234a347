"""Jagged nested tensors as packed sequences: their values are packed already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nested import nested_tensor_from_jagged

from tileattn._common import checks

LAYOUT = "[batch, tokens, heads, head_dim] with ragged tokens"


def any_nested(*tensors: Tensor) -> bool:
    return any(isinstance(tensor, Tensor) and tensor.is_nested for tensor in tensors)


def unpack(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [tokens, heads, head_dim] and int32 offsets of jagged tensors that fit together."""
    for name, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu_seqlens is not None:
            raise ValueError(
                f"{name} is given, but q, k and v are nested tensors with offsets of their own"
            )
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check(name, tensor)
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k has batch {k.shape[0]}; it must have that of q, {q.shape[0]}")
    of_q, of_k, of_v = map(_offsets, (q, k, v))
    if of_v is not of_k and not torch.equal(of_v, of_k):
        raise ValueError("v has other offsets than k; each value needs a key")
    return q.values(), k.values(), v.values(), of_q.to(torch.int32), of_k.to(torch.int32)


def like(values: Tensor, nested: Tensor) -> Tensor:
    """``values`` [tokens, ...] with the offsets of ``nested``."""
    return nested_tensor_from_jagged(values, _offsets(nested))


def _offsets(nested: Any) -> Tensor:
    offsets: Tensor = nested.offsets()
    return offsets


def _check(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_nested:
        error = ValueError if isinstance(tensor, Tensor) else TypeError
        raise error(
            f"{name} is {checks.describe(tensor)}; all of q, k and v must be nested, or none"
        )
    if tensor.layout is not torch.jagged:
        raise TypeError(
            f"{name} is a nested tensor of layout {tensor.layout}; make it with layout=torch.jagged"
        )
    jagged: Any = tensor
    if tensor.dim() != 4 or jagged._ragged_idx != 1:
        raise ValueError(
            f"{name} is a nested tensor of shape {list(tensor.shape)}; its layout must be {LAYOUT}"
        )
    if jagged.lengths() is not None:
        raise ValueError(f"{name} is a nested tensor with holes; pass {name}.contiguous()")
