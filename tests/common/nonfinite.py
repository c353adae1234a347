"""What a NaN or an infinity in one token may change: nothing that does not depend on that token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

VALUES = (torch.nan, torch.inf, -torch.inf)


def poisoned(tensors: Tensors, name: str, index: tuple[int, ...], value: float) -> Tensors:
    """The tensors with all channels of one token and head of one of them replaced."""
    changed = tensors[name].clone()
    changed[index] = value
    return tensors | {name: changed}


def positions(length: int, backend: str) -> Iterator[tuple[int, float]]:
    """Every position with a NaN, every fifth with an infinity; of the reference, fewer."""
    for t in range(0, length, 1 if backend == "auto" else 10):
        yield t, torch.nan
        if t % 5 == 0:
            yield t, VALUES[1 + t % 2]


def assert_same(actual: Tensor, clean: Tensor, depends: Tensor, what: str) -> None:
    """Equal bit by bit where ``depends``, broadcast over the last dimensions, is False."""
    depends = depends.view(*depends.shape, *[1] * (clean.dim() - depends.dim()))
    changed = (actual != clean) | actual.isnan()
    leaked = changed & ~depends
    assert not leaked.any(), f"{what}: reaches {leaked.nonzero()[0].tolist()} and others"


def assert_reached(actual: Tensor, depends: Tensor, what: str) -> None:
    """Nothing finite where ``depends``."""
    kept = actual.isfinite() & depends.view(*depends.shape, *[1] * (actual.dim() - depends.dim()))
    assert not kept.any(), f"{what}: lost at {kept.nonzero()[0].tolist()} and others"
