"""Head dims that no kernel takes: every family says which it takes and how to get the reference.

The way out that the message names is then gone: ``backend='reference'`` runs the same call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tileattn
from tileattn import capabilities, nn, use_backend
from tileattn._common.library import cuda_kernels
from tileattn.integrations import natten
from tileattn.linear._checks import MAX_LINEAR_DIM

ROOT = Path(__file__).parents[2]

Call = Callable[..., Any]


def rows(dim: int, *grid: int) -> Tensor:
    return torch.randn(1, *(grid or (4,)), 2, dim)


def same(function: Call, *grid: int, **options: Any) -> Callable[[int], Callable[..., Any]]:
    """``function`` of q, k and v of one head dim."""
    return lambda dim: lambda **backend: function(*[rows(dim, *grid)] * 3, **options, **backend)


def value_dim(function: Call, *grid: int, **options: Any) -> Callable[[int], Callable[..., Any]]:
    """The same with a head dim of 8 for q and k."""
    return lambda dim: (
        lambda **backend: function(
            rows(8, *grid), rows(8, *grid), rows(dim, *grid), **options, **backend
        )
    )


def module(
    build: Callable[[int], torch.nn.Module], *grid: int
) -> Callable[[int], Callable[..., Any]]:
    """A module of two heads on as many channels."""
    return lambda dim: (
        lambda **backend: build(dim)(torch.randn(1, *(grid or (4,)), 2 * dim), **backend)
    )


def step(dim: int) -> Callable[..., Any]:
    q = torch.randn(2, 2, dim)
    return lambda **backend: tileattn.linear_attention_step(
        q, q, q, torch.zeros(2, 2, dim, dim), **backend
    )


#: not a multiple of 8, and above 256
SOFTMAX = (12, 264, 512)
#: what the kernels of linear attention do not take
LINEAR = (1032,)
CASES: dict[str, tuple[Callable[[int], Callable[..., Any]], tuple[int, ...]]] = {
    "attention": (same(tileattn.attention), SOFTMAX),
    "attention, values": (value_dim(tileattn.attention), SOFTMAX),
    "softmax_rnn_attention": (same(tileattn.softmax_rnn_attention), SOFTMAX),
    "agent_attention": (
        lambda dim: lambda **backend: tileattn.agent_attention(*[rows(dim)] * 4, **backend),
        SOFTMAX,
    ),
    "neighborhood_attention": (same(tileattn.neighborhood_attention, 4, window=3), SOFTMAX),
    "neighborhood_attention, values": (
        value_dim(tileattn.neighborhood_attention, 4, 4, window=3),
        SOFTMAX,
    ),
    "halo_attention": (same(tileattn.halo_attention, 4, block=2, halo=1), SOFTMAX),
    "windowed_attention": (same(tileattn.windowed_attention, 4, window=2), SOFTMAX),
    "linear_attention": (same(tileattn.linear_attention), LINEAR),
    "linear_attention, values": (value_dim(tileattn.linear_attention), LINEAR),
    "linear_attention, taylor2": (same(tileattn.linear_attention, feature_map="taylor2"), (32,)),
    "segment_state": (
        lambda dim: lambda **backend: tileattn.segment_state(*[rows(dim)] * 2, **backend),
        LINEAR,
    ),
    "linear_attention_step": (step, LINEAR),
    "prefix_linear_attention": (
        lambda dim: lambda **backend: tileattn.prefix_linear_attention(*[rows(dim)] * 5, **backend),
        LINEAR,
    ),
    "clamped_linear_attention": (same(tileattn.clamped_linear_attention), LINEAR),
    "wersa_attention": (
        lambda dim: (
            lambda **backend: tileattn.wersa_attention(
                *[rows(8)] * 3, torch.ones(2), torch.randn(8, dim), **backend
            )
        ),
        LINEAR,
    ),
    "natten.na1d": (same(natten.na1d, 4, kernel_size=3), SOFTMAX),
    "natten.na2d": (same(natten.na2d, 4, 4, kernel_size=3), SOFTMAX),
    "natten.na3d": (same(natten.na3d, 3, 3, 3, kernel_size=3), SOFTMAX),
    "natten.attention": (same(natten.attention), SOFTMAX),
    "nn.Attention": (module(lambda dim: nn.Attention(2 * dim, 2)), SOFTMAX),
    "nn.SoftmaxRnnAttention": (module(lambda dim: nn.SoftmaxRnnAttention(2 * dim, 2)), SOFTMAX),
    "nn.AgentAttention": (
        module(lambda dim: nn.AgentAttention(2 * dim, 2, image=3, agents=2), 3, 3),
        SOFTMAX,
    ),
    "nn.NeighborhoodAttention1d": (
        module(lambda dim: nn.NeighborhoodAttention1d(2 * dim, 2, window=3)),
        SOFTMAX,
    ),
    "natten.NeighborhoodAttention1D": (
        module(lambda dim: natten.NeighborhoodAttention1D(2 * dim, 2, 3)),
        SOFTMAX,
    ),
    "nn.LightningAttention": (module(lambda dim: nn.LightningAttention(2 * dim, 2)), LINEAR),
    "nn.ClampedLinearAttention": (
        module(lambda dim: nn.ClampedLinearAttention(2 * dim, 2)),
        LINEAR,
    ),
}


@pytest.mark.parametrize(
    ("name", "dim"), [(name, dim) for name, (_, dims) in CASES.items() for dim in dims]
)
def test_the_message_names_the_way_out(name: str, dim: int) -> None:
    call = CASES[name][0](dim)
    with torch.no_grad():
        for refused in (lambda: call(), lambda: call(backend="cpu")):
            with pytest.raises(
                ValueError, match=r"has head_dim \d+; allowed on backend 'cpu'"
            ) as caught:
                refused()
            assert re.search(r"multiples of 8 up to 256|up to 1024", str(caught.value))
            assert "backend='reference' takes any" in str(caught.value)
        assert all(
            t.isfinite().all() for t in torch.utils._pytree.tree_leaves(call(backend="reference"))
        )
        with use_backend("reference"):
            call()


@pytest.mark.parametrize("dim", [12, 264])
def test_what_is_plain_pytorch_takes_any(dim: int) -> None:
    x = rows(dim)
    for out in (
        tileattn.local_linear_attention(x, x, x, iterations=2),
        tileattn.parallax_attention(x, x, x, x),
        tileattn.neighborhood_qk(x, x, window=3),
        tileattn.neighborhood_av(torch.rand(1, 4, 2, 3), x, window=3),
        tileattn.linear_attention(x, x, x),
    ):
        assert out.isfinite().all()


@pytest.mark.parametrize(
    ("limit", "header", "name"),
    [
        (capabilities.MAX_HEAD_DIM, "cpp/cpu/common/blocks.h", "kMaxDim"),
        (MAX_LINEAR_DIM, "cpp/include/tileattn/linear_attention.h", "kMaxLinearDim"),
    ],
)
def test_limits_are_those_of_the_cpu_kernels(limit: int, header: str, name: str) -> None:
    assert f"constexpr int {name} = {limit};" in (ROOT / header).read_text()


@pytest.mark.skipif(not cuda_kernels(), reason="built without CUDA kernels")
def test_limits_are_those_of_the_cuda_kernels() -> None:
    """Each was found among the kernels that were built."""
    for feature, dim in {
        "neighborhood attention, large head dims": capabilities.CUDA_GRID_HEAD_DIM,
        "linear attention, any head dim": capabilities.MAX_CUDA_LINEAR_DIM,
        "taylor2, large head dims": capabilities.MAX_CUDA_TAYLOR2_DIM,
    }.items():
        assert dim < capabilities.MAX_HEAD_DIM
        assert f" {dim}" in capabilities.why_not("cuda", feature)
