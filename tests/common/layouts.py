"""Tensors whose memory is not the plain contiguous one."""

from __future__ import annotations

import torch
from torch import Tensor


def transposed(tensor: Tensor) -> Tensor:
    """[B, S, H, D] lying in memory as [B, H, S, D]."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def poisoned_borders(tensor: Tensor) -> Tensor:
    """A view into a larger buffer, NaN all around: nothing outside may be read."""
    shape = [n + 8 for n in tensor.shape]
    inside = (*(slice(4, 4 + n) for n in tensor.shape[:-1]), slice(0, tensor.shape[-1]))
    buffer = tensor.new_full(shape, torch.nan)
    buffer[inside] = tensor
    return buffer[inside]


def misaligned(tensor: Tensor) -> Tensor:
    """Rows that start at addresses that no vector load can take."""
    buffer = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), torch.nan)
    buffer[..., 1:-2] = tensor
    return buffer[..., 1:-2]


def strided_last_dim(tensor: Tensor) -> Tensor:
    buffer = tensor.new_full((*tensor.shape, 2), torch.nan)
    buffer[..., 0] = tensor
    return buffer[..., 0]


def flipped_batch_order(tensor: Tensor) -> Tensor:
    """The batch dimension lies innermost but one."""
    return tensor.movedim(0, 2).contiguous().movedim(2, 0)


LAYOUTS = [transposed, poisoned_borders, misaligned, strided_last_dim, flipped_batch_order]
