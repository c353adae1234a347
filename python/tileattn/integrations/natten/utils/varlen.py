"""Offsets of packed sequences, as NATTEN's ``attention`` takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from tileattn._common import checks


def generate_varlen_parameters(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seqlens_Q: Tensor | None = None,
    seqlens_KV: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Offsets and longest lengths of sequences whose lengths are given. Waits for their device.

    Args:
        query: [1, Tq, H, D]; key: [1, Tk, Hkv, D]; value: [1, Tk, Hkv, Dv].
        seqlens_Q: int32 [N], tokens of each sequence in query; seqlens_KV: in key and value.

    Returns:
        ``cumulative_seqlen_Q`` and ``cumulative_seqlen_KV``, int32 [N + 1], ``max_seqlen_Q`` and
        ``max_seqlen_KV``; (None, None, 0, 0) without lengths.

    Raises:
        TypeError, ValueError: lengths that are no int32 [N] of one N on the device of query, or
            only one of them; a batch other than 1.
    """
    if seqlens_Q is None and seqlens_KV is None:
        return None, None, 0, 0
    offsets_q, offsets_k = offsets_of_lengths(query, key, value, seqlens_Q, seqlens_KV)
    longest_q, longest_k = (int(offsets.diff().max()) for offsets in (offsets_q, offsets_k))
    return offsets_q, offsets_k, longest_q, longest_k


def offsets_of_lengths(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seqlens_Q: Tensor | None,
    seqlens_KV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The offsets alone, without waiting."""
    check_packed(query, key, value)
    for name, lengths in (("seqlens_Q", seqlens_Q), ("seqlens_KV", seqlens_KV)):
        if lengths is None:
            raise ValueError(f"{name} is None; both seqlens must be given, or neither")
        checks.require_tensor(name, lengths)
        if lengths.dtype != torch.int32:
            raise TypeError(f"{name} has dtype {lengths.dtype}; it must be torch.int32")
        checks.require_device(name, lengths, query)
        if lengths.dim() != 1 or lengths.shape[0] == 0:
            raise ValueError(f"{name} has shape {list(lengths.shape)}; it must be [sequences]")
    assert seqlens_Q is not None and seqlens_KV is not None
    if seqlens_Q.shape != seqlens_KV.shape:
        raise ValueError(
            f"seqlens_KV has {seqlens_KV.shape[0]} entries; it must have as many as seqlens_Q, "
            f"{seqlens_Q.shape[0]}"
        )
    offsets_q = _offsets(seqlens_Q)
    # One object where it can be: then attention knows that the lengths are equal.
    return offsets_q, (offsets_q if seqlens_KV is seqlens_Q else _offsets(seqlens_KV))


def check_packed(query: Tensor, key: Tensor, value: Tensor) -> None:
    """All sequences in a row, in a batch of 1."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        checks.require_tensor(name, tensor)
        if tensor.dim() != 4 or tensor.shape[0] != 1:
            raise ValueError(
                f"{name} is {checks.describe(tensor)}; packed sequences lie in a row, "
                "[1, tokens, heads, head_dim]"
            )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
