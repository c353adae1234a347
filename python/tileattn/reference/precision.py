"""The dtype of sums, and products that autocast does not round."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of sums over ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For products that autocast would round."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
