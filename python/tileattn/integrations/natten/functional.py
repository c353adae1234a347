"""NATTEN's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tileattn import dense, neighborhood
from tileattn._common import checks
from tileattn.backend import check_backend
from tileattn.integrations.natten.context import deterministic_gradients
from tileattn.integrations.natten.types import KernelSchedule
from tileattn.integrations.natten.utils.varlen import check_packed, offsets_of_lengths
from tileattn.neighborhood._checks import PerAxis

Result = Tensor | tuple[Tensor, Tensor]


def neighborhood_attention_generic(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    stride: PerAxis | None = 1,
    dilation: PerAxis | None = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    backward_q_tile_shape: Sequence[int] | None = None,
    backward_kv_tile_shape: Sequence[int] | None = None,
    backward_kv_splits: Sequence[int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | KernelSchedule | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Result:
    """Neighborhood attention over one, two or three axes.

    Args:
        query, key, value: q, k and v of :func:`tileattn.neighborhood_attention`.
        kernel_size: its ``window``.
        stride, dilation: its own; None: 1.
        is_causal: its ``causal``; None: False.
        scale: its own; None or 0: head_dim ** -0.5.
        additional_keys, additional_values: its ``extra_keys`` and ``extra_values``.
        backend: a name of :func:`tileattn.use_backend`; NATTEN's own names have no effect.
        attention_kwargs: for NATTEN's other kernels: without effect, as all others.
        return_lse: its own.

    Returns:
        out, or (out, lse) with ``return_lse``, as :func:`tileattn.neighborhood_attention`.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`tileattn.neighborhood_attention`.
    """
    out, lse = neighborhood.neighborhood_attention(
        query,
        key,
        value,
        window=kernel_size,
        stride=1 if stride is None else stride,
        dilation=1 if dilation is None else dilation,
        causal=False if is_causal is None else is_causal,
        scale=scale or None,
        extra_keys=additional_keys,
        extra_values=additional_values,
        deterministic=deterministic_gradients(),
        return_lse=True,
        backend=_backend(backend),
    )
    return (out, lse) if return_lse else out


def _of_rank(rank: int) -> Callable[..., Result]:
    @functools.wraps(neighborhood_attention_generic)
    def function(query: Tensor, *arguments: Any, **options: Any) -> Result:
        if isinstance(query, Tensor) and query.dim() != rank + 3:
            raise ValueError(
                f"query has shape {list(query.shape)}; na{rank}d takes [batch, *grid, heads, "
                f"head_dim] with {rank} grid axes"
            )
        return neighborhood_attention_generic(query, *arguments, **options)

    function.__name__ = function.__qualname__ = f"na{rank}d"
    function.__doc__ = (
        f":func:`neighborhood_attention_generic` for {rank} grid axes: the same arguments, results "
        "and errors."
    )
    return function


na1d, na2d, na3d = map(_of_rank, (1, 2, 3))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: Tensor | None = None,
    seqlens_KV: Tensor | None = None,
    cumulative_seqlen_Q: Tensor | None = None,
    cumulative_seqlen_KV: Tensor | None = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | KernelSchedule | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Result:
    """Attention over all keys, or over those of each packed sequence.

    Args:
        query: [B, Sq, H, D]; key: [B, Sk, Hkv, D]; value: [B, Sk, Hkv, Dv]; packed: B = 1.
        is_causal: query i sees keys 0 to i (aligned top-left, other than in
            :func:`tileattn.attention`).
        scale: of the scores; None or 0: head_dim ** -0.5.
        seqlens_Q, seqlens_KV: int32 [N], lengths of packed sequences.
        cumulative_seqlen_Q, cumulative_seqlen_KV: int32 [N + 1], their offsets, instead.
        max_seqlen_Q, max_seqlen_KV: not needed; only with offsets.
        backend: a name of :func:`tileattn.use_backend`; NATTEN's own names have no effect, as all
            others.
        return_lse: also return the log-sum-exp.

    Returns:
        out [B, Sq, H, Dv]; with ``return_lse`` also lse [B, Sq, H] float32.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`tileattn.attention`.
    """
    is_causal = checks.check_flag("is_causal", is_causal)
    options: dict[str, Any] = {
        "scale": scale or None,
        "deterministic": deterministic_gradients(),
        "return_lse": True,
        "backend": _backend(backend),
    }
    offsets_q, offsets_k = cumulative_seqlen_Q, cumulative_seqlen_KV
    if seqlens_Q is not None or seqlens_KV is not None:
        offsets_q, offsets_k = offsets_of_lengths(query, key, value, seqlens_Q, seqlens_KV)
    if offsets_q is None and offsets_k is None:
        if max_seqlen_Q or max_seqlen_KV:
            raise ValueError(
                f"max_seqlen_Q is {max_seqlen_Q} and max_seqlen_KV {max_seqlen_KV} without "
                "cumulative_seqlen_Q and cumulative_seqlen_KV"
            )
        out, lse = _whole(query, key, value, is_causal, options)
    else:
        check_packed(query, key, value)
        tensors = query[0], key[0], value[0]
        out, lse = _packed(*tensors, offsets_q, offsets_k, is_causal, options)
        out, lse = out[None], lse[None]
    return (out, lse) if return_lse else out


def _whole(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    checks.check_qkv(query, key, value, packed=False)
    queries, keys = query.shape[1], key.shape[1]
    if is_causal and queries < keys:  # keys past the last query are never seen
        key, value = key[:, :queries], value[:, :queries]
    elif is_causal and queries > keys:  # queries past the last key see all
        options = options | {"window": (None, queries - keys)}
        is_causal = False
    out, lse = dense.attention(query, key, value, causal=is_causal, **options)
    return out, lse


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets_q: Tensor | None,
    offsets_k: Tensor | None,
    is_causal: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    def attend(of_q: Tensor | None, of_k: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
        out, lse = dense.attention(
            query, key, value, cu_seqlens_q=of_q, cu_seqlens_k=of_k, causal=causal, **options
        )
        return out, lse

    if not is_causal or offsets_q is offsets_k or offsets_q is None or offsets_k is None:
        return attend(offsets_q, offsets_k, is_causal)
    # Lengths may differ. As many first tokens as there are of both are a causal problem of their
    # own; the queries after them see all keys.
    both = torch.minimum(offsets_q.diff(), offsets_k.diff())
    halves_q = _halves(offsets_q, both)
    first = attend(halves_q, _halves(offsets_k, both), True)
    rest = attend(halves_q, _halves(offsets_k, torch.zeros_like(both)), False)
    return merge_attentions([first[0], rest[0]], [first[1], rest[1]])


def _halves(offsets: Tensor, first: Tensor) -> Tensor:
    """Offsets of twice as many sequences: the ``first`` tokens of each, then the others."""
    starts = offsets[:-1]
    return torch.cat([torch.stack([starts, starts + first], 1).flatten(), offsets[-1:]])


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`tileattn.merge_attention` of outputs and lse_tensors.

    Its gradients are those of the formula; ``torch_compile`` and ``use_autograd_fix`` have no
    effect.
    """
    return dense.merge_attention(outputs, lse_tensors)


def _backend(name: str | None) -> str | None:
    """A backend of tileattn's; None for NATTEN's kernels of a name like "cutlass-fna"."""
    if name is None or (isinstance(name, str) and name.endswith(("-fna", "-fmha"))):
        return None
    return check_backend(name)
