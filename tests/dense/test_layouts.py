"""Inputs and incoming gradients whose memory is not the plain contiguous one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, compare, run, upstream
from layouts import LAYOUTS
from torch import Tensor

from tileattn import attention, linear_attention, neighborhood_attention

CASE = Case(bias="bhq", options={"causal": True, "window": (30, 0)})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_inputs(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype, device: str
) -> None:
    """Bit-equal to the call on contiguous tensors, which itself is right."""
    tensors = CASE.tensors(dtype, device)
    gradients = upstream(tensors["q"], tensors["q"][..., 0].float())
    options = CASE.options | {"deterministic": True}
    plain = run(attention, tensors, options, gradients)
    compare(tensors, options, plain, True)
    strided = {name: layout(tensor) for name, tensor in tensors.items()}
    actual = run(attention, strided, options, (layout(gradients[0]), gradients[1]))
    for name, value in plain.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_expanded_input(name: str, dtype: torch.dtype, device: str) -> None:
    """One batch entry shared by all (stride 0)."""
    tensors = CASE.tensors(dtype, device)
    tensors[name] = tensors[name][:1].expand_as(tensors[name])
    gradients = upstream(tensors["q"], tensors["q"][..., 0].float())
    compare(tensors, CASE.options, run(attention, tensors, CASE.options, gradients), True)


def test_expanded_gradients(dtype: torch.dtype, device: str) -> None:
    """out.sum() sends back one number with stride 0 everywhere."""
    tensors = CASE.tensors(dtype, device)

    def gradients_of(expand: bool) -> dict[str, Tensor]:
        out, lse = tensors["q"], tensors["q"][..., 0].float()
        ones = [
            t.new_ones(()).expand(t.shape) if expand else torch.ones_like(t) for t in (out, lse)
        ]
        return run(attention, tensors, CASE.options | {"deterministic": True}, (ones[0], ones[1]))

    expanded, full = gradients_of(True), gradients_of(False)
    for name, value in full.items():
        assert torch.equal(expanded[name], value), name


def test_packed_views_of_one_projection(dtype: torch.dtype, device: str) -> None:
    """q, k and v as slices of one fused [B, S, 3, H, D] tensor, gradients included."""
    fused = torch.randn(2, 40, 3, 4, 32, generator=torch.Generator().manual_seed(0))
    fused = fused.to(device, dtype).requires_grad_()
    out = attention(*fused.unbind(2), causal=True)
    (together,) = torch.autograd.grad(out, fused, torch.ones_like(out))
    parts = [part.detach().contiguous().requires_grad_() for part in fused.unbind(2)]
    again = attention(*parts, causal=True)
    separate = torch.autograd.grad(again, parts, torch.ones_like(again))
    assert torch.equal(out, again)
    for part, gradient in zip(together.unbind(2), separate, strict=True):
        torch.testing.assert_close(part, gradient)


def test_nan_in_hidden_tokens_stays_there(dtype: torch.dtype, device: str) -> None:
    """NaN in packed tokens that belong to no sequence reaches nothing."""
    case = Case(seqlens=((20, 30), (9, 4)), tail=(11, 70), options={"causal": True})
    clean = case.tensors(dtype, device)
    dirty = {name: tensor.clone() for name, tensor in clean.items()}
    for name, used in (("q", 29), ("k", 34), ("v", 34)):
        dirty[name][used:] = torch.nan
    gradients = upstream(clean["q"], clean["q"][..., 0].float())
    options = case.options | {"deterministic": True}
    expected, actual = (run(attention, t, options, gradients) for t in (clean, dirty))
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def _windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, window=(40, 40))


def _neighborhood(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return neighborhood_attention(q, k, v, window=128, stride=128)


def _linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return linear_attention(q, k, v, log_decay=torch.full(q.shape[2:3], -0.1))


@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("attend", [_windowed, _neighborhood, _linear])
def test_large_results_equal_those_of_single_heads(attend: Any, dim: int) -> None:
    """Large results are written past the caches, where their rows are aligned."""
    generator = torch.Generator().manual_seed(dim)
    q, k, v, dout = (torch.randn(1, 2048, 8, dim, generator=generator) for _ in range(4))

    def results(heads: slice) -> list[Tensor]:
        leaves = [t[:, :, heads].requires_grad_() for t in (q, k, v)]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, dout[:, :, heads])]

    alone = [results(slice(h, h + 1)) for h in range(8)]
    for whole, *heads in zip(results(slice(None)), *alone, strict=True):
        torch.testing.assert_close(whole, torch.cat(heads, 2), rtol=1e-4, atol=1e-5)
