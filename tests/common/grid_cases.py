"""One problem on a token grid: its inputs, and the comparison of a kernel with the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Tensors, compare, run, upstream
from torch import Tensor

from tileattn import neighborhood_attention, reference

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class GridCase:
    """Shapes and options of one call; ``extra`` keys are seen by every query."""

    grid: tuple[int, ...]
    options: dict[str, Any]
    batch: int = 2
    heads: int = 4
    heads_kv: int = 2
    dim: int = 16
    dim_v: int = 24
    extra: int = 0
    layout: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)

    def tensors(self, dtype: torch.dtype, device: str, seed: int = 0) -> Tensors:
        """Standard normal inputs, the same for every device."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return self.layout(torch.randn(*shape, generator=generator).to(device, dtype))

        made = {
            "q": normal(self.batch, *self.grid, self.heads, self.dim),
            "k": normal(self.batch, *self.grid, self.heads_kv, self.dim),
            "v": normal(self.batch, *self.grid, self.heads_kv, self.dim_v),
        }
        if self.extra:
            made["extra_keys"] = normal(self.batch, self.extra, self.heads_kv, self.dim)
            made["extra_values"] = normal(self.batch, self.extra, self.heads_kv, self.dim_v)
        return made


def check_grid(
    case: GridCase,
    dtype: torch.dtype,
    device: str,
    *,
    kernel: Kernel = neighborhood_attention,
    truth: Kernel = reference.neighborhood_attention,
) -> Tensors:
    """Runs the kernel on the case, compares all results with the truth and returns them."""
    tensors = case.tensors(dtype, device)
    rows = tensors["q"].shape[:-1]
    like = (
        torch.empty((*rows, case.dim_v), dtype=dtype, device=device),
        torch.empty(rows, device=device),
    )
    actual = run(kernel, tensors, case.options, upstream(*like))
    compare(tensors, case.options, actual, True, truth)
    return actual
