"""Checks of the arguments of linear attention, before any kernel starts."""

from __future__ import annotations

import torch
from torch import Tensor

from tileattn._common.checks import (
    FLOAT_DTYPES,
    _check_offsets,
    check_qkv,
    describe,
    require_device,
    require_tensor,
)
from tileattn.reference.masked import has_values

State = Tensor | tuple[Tensor, Tensor]


def check_inputs(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> int:
    """Returns the number of sequences."""
    check_qkv(q, k, v, packed=False)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"k has {k.shape[1]} tokens; it must have those of q, {q.shape[1]}")
    if cu_seqlens is None:
        return q.shape[0]
    require_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens has dtype {cu_seqlens.dtype}; it must be torch.int32")
    require_device("cu_seqlens", cu_seqlens, q)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens has shape {list(cu_seqlens.shape)}; it must be [sequences + 1]"
        )
    if q.shape[0] != 1:
        raise ValueError(
            f"q has batch {q.shape[0]}; with cu_seqlens it must be 1, all sequences in a row"
        )
    if has_values(cu_seqlens):
        _check_offsets("cu_seqlens", cu_seqlens.tolist(), q.shape[1])
    return cu_seqlens.shape[0] - 1


def check_decay(log_decay: Tensor, k: Tensor, heads: int, causal: bool) -> None:
    """A float tensor [H] or [B, T, H], at most 0, of a causal call."""
    require_tensor("log_decay", log_decay)
    if log_decay.dtype not in FLOAT_DTYPES:
        raise TypeError(f"log_decay has dtype {log_decay.dtype}; it must be a floating dtype")
    require_device("log_decay", log_decay, k)
    full = (*k.shape[:2], heads)
    if tuple(log_decay.shape) != ((heads,) if log_decay.dim() == 1 else full):
        raise ValueError(
            f"log_decay has shape {list(log_decay.shape)}; allowed: [heads] = [{heads}] or "
            f"[batch, tokens, heads] = {list(full)}"
        )
    if not causal:
        raise ValueError("log_decay is given with causal=False; a decay needs an order in time")
    if has_values(log_decay) and not bool((log_decay <= 0).all()):  # true for NaN
        raise ValueError(
            f"log_decay has values up to {float(log_decay.max()):g}; it must be <= 0 (a decay "
            "exp(log_decay) of at most 1)"
        )


def check_state(
    name: str, state: State, normalize: bool, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Returns (S, z): float32 [*shape] and, where normalized, [*shape[:-1]]."""
    layout = "[sequences, heads, key channels, value channels]"
    if normalize:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{name} is {_describe(state)}; with normalize=True it must be a pair (S, z)"
            )
        s, z = state
        _check_part(f"{name}[1]", z, shape[:-1], layout.removesuffix(", value channels]") + "]", s)
        _check_part(f"{name}[0]", s, shape, layout, like)
        return s, z
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} is {_describe(state)}; it must be one tensor (normalize=False)")
    _check_part(name, state, shape, layout, like)
    return state, None


def _describe(state: object) -> str:
    if isinstance(state, (tuple, list)):
        return f"a {type(state).__name__} of {len(state)}"
    return describe(state)


def _check_part(
    name: str, tensor: Tensor, shape: tuple[int, ...], layout: str, like: Tensor
) -> None:
    require_tensor(name, tensor)
    exact = torch.float64 if like.dtype == torch.float64 else torch.float32
    if tensor.dtype != exact:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be {exact}")
    require_device(name, tensor, like)
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; it must be {layout} = {list(shape)}"
        )
