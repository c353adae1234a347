"""The neighborhood modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tileattn import neighborhood_attention
from tileattn.nn import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)

MODULES = {1: NeighborhoodAttention1d, 2: NeighborhoodAttention2d, 3: NeighborhoodAttention3d}
GRIDS = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}


@pytest.mark.parametrize("rank", MODULES)
def test_equals_its_parts(rank: int) -> None:
    torch.manual_seed(0)
    options = {"window": 3, "stride": 2, "causal": (True,) + (False,) * (rank - 1)}
    module = MODULES[rank](32, 4, num_kv_heads=2, **options)
    x = torch.randn(2, *GRIDS[rank], 32)
    parts = module.qkv(x).split((32, 16, 16), -1)
    q, k, v = (part.unflatten(-1, (-1, 8)) for part in parts)
    expected = module.proj(neighborhood_attention(q, k, v, **options).flatten(-2))
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x, backend="reference"), expected)


@pytest.mark.parametrize("rank", MODULES)
def test_relative_bias(rank: int) -> None:
    """A table of zeros changes nothing; a huge entry makes every query look there."""
    torch.manual_seed(0)
    plain = MODULES[rank](16, 2, window=3)
    biased = MODULES[rank](16, 2, window=3, relative_bias=True)
    assert biased.rpb is not None and biased.rpb.shape == (2, *(5,) * rank)
    biased.load_state_dict(plain.state_dict() | {"rpb": torch.zeros_like(biased.rpb)})
    x = torch.randn(2, *GRIDS[rank], 16)
    torch.testing.assert_close(biased(x), plain(x))
    with torch.no_grad():
        biased.rpb[(slice(None), *(2,) * rank)] = 1e4  # the query itself
    v = plain.qkv(x)[..., 32:]
    torch.testing.assert_close(biased(x), plain.proj(v))


def test_every_parameter_gets_a_gradient() -> None:
    module = NeighborhoodAttention2d(16, 2, window=3, dilation=(1, 2), relative_bias=True)
    module(torch.randn(2, 5, 6, 16)).square().sum().backward()
    missing = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_module_compiles() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 16)
    for relative_bias in (False, True):
        torch.compiler.reset()
        module = NeighborhoodAttention2d(16, 2, window=3, relative_bias=relative_bias)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))


def test_half_precision_module() -> None:
    module = NeighborhoodAttention1d(16, 2, window=3, relative_bias=True, dtype=torch.bfloat16)
    out = module(torch.randn(1, 7, 16, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert module.rpb is not None and module.rpb.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(embed_dim=10, num_heads=4, window=3), "embed_dim is 10"),
        (dict(embed_dim=16, num_heads=4, window=3, num_kv_heads=3), "num_kv_heads is 3"),
        (dict(embed_dim=16, num_heads=4, window=(3, 1)), "window is 1 on axis 1"),
        (dict(embed_dim=16, num_heads=4, window=(3, 4), stride=(3, 5)), "stride is 5 on axis 1"),
        (dict(embed_dim=16, num_heads=4, window=3, dilation=(0, 1)), "dilation is 0 on axis 0"),
    ],
)
def test_bad_sizes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention2d(**arguments)


def test_bad_rank() -> None:
    with pytest.raises(ValueError, match="2 grid axes"):
        NeighborhoodAttention2d(16, 2, window=3)(torch.zeros(1, 5, 16))
