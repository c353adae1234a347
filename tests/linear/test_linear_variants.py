"""Composed operators against their quadratic definitions, with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import LIMIT, rms
from torch import Tensor

import tileattn
from tileattn import reference


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


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("ridge", [0.1, 10.0])
def test_local_linear_attention(ridge: float, causal: bool, dtype: torch.dtype) -> None:
    """Several blocks of queries, more keys than queries; 8 channels need 8 iterations."""
    inputs = [normal(1, 150, 4, 8), normal(1, 170, 2, 8).flip(1), normal(1, 170, 2, 5)]
    compare("local_linear_attention", inputs, dtype, ridge=ridge, causal=causal)


def test_large_ridge_is_softmax_attention() -> None:
    q, k, v = (normal(1, 20, 2, 8), normal(1, 20, 2, 8).flip(1), normal(1, 20, 2, 8))
    out = tileattn.local_linear_attention(q, k, v, ridge=1e9)
    torch.testing.assert_close(out, reference.attention(q, k, v, causal=True))


def test_local_linear_attention_fits_linear_functions() -> None:
    """Values that are a linear function of their keys: out is that function of the query."""
    q, k, matrix = normal(1, 40, 1, 4), normal(1, 60, 1, 4).flip(1), normal(4, 3)
    out = tileattn.local_linear_attention(q, k, k @ matrix + 2, ridge=1e-9, causal=False)
    torch.testing.assert_close(out, q @ matrix + 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_parallax_attention(causal: bool, dtype: torch.dtype) -> None:
    inputs = [normal(1, 150, 4, 8), normal(1, 150, 4, 8).flip(2)]
    inputs += [normal(1, 150, 2, 8).flip(1), normal(1, 150, 2, 5)]
    compare("parallax_attention", inputs, dtype, causal=causal)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("tokens", [16, 21, 3])
def test_wersa_attention(tokens: int, per_head: bool, dtype: torch.dtype) -> None:
    """Whole and padded blocks of 8 tokens."""
    gains = normal(2, 4, 3).abs() + 0.5 if per_head else normal(4).abs() + 0.5
    inputs = [normal(2, tokens, 3, 8), normal(2, tokens, 3, 8).flip(1), normal(2, tokens, 3, 5)]
    compare("wersa_attention", [*inputs, gains, normal(8, 40)], dtype, bandwidth=0.7)


def test_haar_filter_bands() -> None:
    """Gains of 1 change nothing; the last band alone is the mean over blocks."""
    x = normal(1, 12, 2, 3)
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(tileattn.haar_filter(x, ones), x)
    last = torch.tensor([0.0, 0.0, 1.0])
    means = x.unflatten(1, (3, 4)).mean(2).repeat_interleave(4, 1)
    torch.testing.assert_close(tileattn.haar_filter(x, last), means)


def test_bad_input_of_compositions() -> None:
    q = torch.zeros(1, 3, 2, 8)
    with pytest.raises(ValueError, match="ridge is 0"):
        tileattn.local_linear_attention(q, q, q, ridge=0)
    with pytest.raises(ValueError, match="k has 2 tokens"):
        tileattn.local_linear_attention(q, q[:, :2], q[:, :2])
    with pytest.raises(ValueError, match="r is .* like q"):
        tileattn.parallax_attention(q, q[:, :2], q, q)
    with pytest.raises(ValueError, match=r"gains has shape \[1, 4, 3\]"):
        tileattn.haar_filter(q, torch.zeros(1, 4, 3))


def test_unknown_finalizer() -> None:
    q = torch.zeros(1, 3, 2, 8)
    with pytest.raises(ValueError, match="finalizer is 'max'; allowed: sum, count"):
        tileattn.softmax_rnn_attention(q, q, q, finalizer="max")
