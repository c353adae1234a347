"""Composed operators against their quadratic definitions, with gradients; the Lightning layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_cases import LIMIT, rms
from torch import Tensor

import tileattn
from tileattn import decays, reference
from tileattn.nn import LightningAttention


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def compare(name: str, inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> None:
    """out and the gradient of each input, at most some roundings away."""

    def rounded(x: Any, to: torch.dtype) -> Any:
        return x.to(dtype).to(to) if isinstance(x, Tensor) else x

    results = []
    for module, to in ((tileattn, dtype), (reference, torch.float64)):
        leaves = [rounded(x, to).requires_grad_() for x in inputs]
        given = {key: rounded(value, to) for key, value in options.items()}
        out = getattr(module, name)(*leaves, **given)
        arriving = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad(out, leaves, rounded(arriving, to))])
    for actual, expected in zip(*results, strict=True):
        assert rms(actual.double() - expected) <= 4 * LIMIT[dtype] * rms(expected)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_prefix_linear_attention(normalize: bool, dtype: torch.dtype) -> None:
    shapes = [(2, 70, 4, 16), (2, 70, 2, 16), (2, 70, 2, 8), (2, 90, 2, 16), (2, 90, 2, 8)]
    inputs = [normal(*shape).abs() + 0.1 for shape in shapes]
    compare("prefix_linear_attention", inputs, dtype, normalize=normalize)


@pytest.mark.parametrize("minimum", [1.0, 40.0, 1e3])
@pytest.mark.parametrize("temperature", [False, True])
def test_clamped_linear_attention(minimum: float, temperature: bool, dtype: torch.dtype) -> None:
    """Below, among and above the denominators."""
    inputs = [normal(2, 30, 4, 8), normal(2, 30, 2, 8).flip(1), normal(2, 30, 2, 8)]
    options = {"temperature": normal(4)} if temperature else {}
    compare("clamped_linear_attention", inputs, dtype, minimum=minimum, **options)


@pytest.mark.parametrize("bias", [False, True])
def test_agent_attention(bias: bool, dtype: torch.dtype) -> None:
    inputs = [normal(2, 60, 3, 16), normal(2, 60, 3, 16).flip(1), normal(2, 60, 3, 8)]
    inputs.append(inputs[0][:, ::6])
    options = {"gather_bias": normal(1, 3, 10, 60), "spread_bias": normal(1, 3, 60, 10)}
    compare("agent_attention", inputs, dtype, **(options if bias else {}))


@pytest.mark.parametrize("finalizer", ["sum", "count", "l2", "rms"])
@pytest.mark.parametrize("causal", [True, False])
def test_softmax_rnn_attention(finalizer: str, causal: bool, dtype: torch.dtype) -> None:
    inputs = [normal(2, 60, 4, 16), normal(2, 60, 2, 16).flip(1), normal(2, 60, 2, 8)]
    compare("softmax_rnn_attention", inputs, dtype, finalizer=finalizer, causal=causal)


def test_unknown_finalizer() -> None:
    q = torch.zeros(1, 3, 2, 8)
    with pytest.raises(ValueError, match="finalizer is 'max'; allowed: sum, count"):
        tileattn.softmax_rnn_attention(q, q, q, finalizer="max")


def lightning(**options: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return LightningAttention(32, 4, **options)


def test_lightning_layer_continues_from_its_state() -> None:
    module, x = lightning(layer=1, num_layers=3), torch.randn(2, 70, 32)
    whole, last = module(x)
    first, state = module(x[:, :50])
    second, state = module(x[:, 50:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(module(x, backend="reference")[0], whole)
    low = lightning(layer=1, num_layers=3).bfloat16()  # type: ignore[attr-defined]
    assert torch.equal(low.log_decay, module.log_decay)  # type: ignore[attr-defined]
    assert low(x.bfloat16())[0].dtype == torch.bfloat16


def test_lightning_layer_trains_and_compiles() -> None:
    module, x = lightning(log_decay=decays.retention(4)), torch.randn(2, 9, 32)
    module(x)[0].square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())  # type: ignore
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], module(x)[0])
    with pytest.raises(ValueError, match="embed_dim is 30"):
        LightningAttention(30, 4)
    with pytest.raises(ValueError, match=r"log_decay has shape \[3\]"):
        lightning(log_decay=decays.retention(3))
