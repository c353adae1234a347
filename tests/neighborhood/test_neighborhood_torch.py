"""The neighborhood ops as torch sees them: opcheck, compile, autocast, meta tensors, gradients."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from cases import Tensors
from grid_cases import GridCase
from torch import Tensor

from tileattn import neighborhood_attention, use_backend

FORWARD = torch.ops.tileattn.neighborhood_forward.default
BACKWARD = torch.ops.tileattn.neighborhood_backward.default

CASES = {
    "1d": GridCase((9,), {"window": 4, "dilation": 2}),
    "2d": GridCase((5, 6), {"window": (3, 4), "stride": (2, 1)}, extra=3),
    "3d": GridCase((3, 4, 5), {"window": 3, "causal": (True, False, False)}, heads_kv=4),
}
NAMES = ("q", "k", "v", "extra_keys", "extra_values")


def raw_arguments(name: str, requires_grad: bool) -> tuple[Any, ...]:
    case = CASES[name]
    tensors = case.tensors(torch.float32, "cpu")
    for tensor in tensors.values():
        tensor.requires_grad_(requires_grad)
    rank = len(case.grid)
    spec = ([3] * rank, [2] * rank, [1] * rank, [0] * rank, [0] * rank, False, 0.25, False)
    return (*(tensors.get(n) for n in NAMES), *spec)


@pytest.mark.parametrize("low_parts", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_opcheck_forward(name: str, requires_grad: bool, low_parts: bool) -> None:
    torch.library.opcheck(FORWARD, (*raw_arguments(name, requires_grad), low_parts))


@pytest.mark.parametrize("low_parts", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_opcheck_backward(name: str, low_parts: bool) -> None:
    q, k, v, *rest = raw_arguments(name, False)
    results = FORWARD(q, k, v, *rest, low_parts)
    dout, dlse = (torch.randn_like(t) for t in results[:2])
    torch.library.opcheck(BACKWARD, (dout, dlse, q, k, v, *results, *rest))


def step(tensors: Tensors, **options: Any) -> Tensor:
    out, lse = neighborhood_attention(**tensors, **options, return_lse=True)
    return out.square().sum() + lse.sum()


def assert_same_step(compiled: Any, case: GridCase) -> None:
    """The same value and gradients as eager code."""
    values = []
    for function in (step, compiled):
        tensors = case.tensors(torch.float32, "cpu")
        leaves = [tensor.requires_grad_() for tensor in tensors.values()]
        value = function(tensors, **case.options)
        values.append([value, *torch.autograd.grad(value, leaves)])
    for eager, other in zip(*values, strict=True):
        torch.testing.assert_close(other, eager)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CASES)
def test_compile_without_graph_breaks(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same_step(compiled, CASES[name])


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    assert_same_step(torch.compile(step, fullgraph=True), CASES["2d"])


def test_compile_reports_bad_window() -> None:
    torch.compiler.reset()
    q = torch.zeros(1, 8, 6, 2, 16)
    compiled = torch.compile(neighborhood_attention, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="window is 7 on axis 1"):
        compiled(q, q, q, window=7)


def test_compiled_code_follows_window_and_grid() -> None:
    torch.compiler.reset()
    compiled = torch.compile(neighborhood_attention, fullgraph=True, backend="aot_eager")
    for grid, window in (((8, 6), 5), ((8, 6), 3), ((9, 7), 4), ((10, 7), (2, 6))):
        q = torch.randn(1, *grid, 2, 16)
        expected = neighborhood_attention(q, q, q, window=window)
        torch.testing.assert_close(compiled(q, q, q, window=window), expected)


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast(target: torch.dtype) -> None:
    """Every tensor is cast, extra keys included."""
    case = CASES["2d"]
    tensors = case.tensors(torch.float32, "cpu")
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    with torch.autocast("cpu", dtype=target):
        out = neighborhood_attention(**leaves, **case.options)
    assert out.dtype == target
    low = {name: tensor.to(target) for name, tensor in tensors.items()}
    torch.testing.assert_close(out, neighborhood_attention(**low, **case.options), rtol=0, atol=0)
    gradients = torch.autograd.grad(out.float().sum(), list(leaves.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_meta_and_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    case = CASES["3d"]
    out, lse = neighborhood_attention(
        **case.tensors(torch.float32, "meta"), **case.options, return_lse=True
    )
    assert out.shape == (2, 3, 4, 5, 4, 24) and lse.shape == (2, 3, 4, 5, 4)
    with FakeTensorMode():
        tensors = case.tensors(torch.float32, "cpu")
        assert neighborhood_attention(**tensors, **case.options).shape == out.shape


@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone(wanted: str) -> None:
    """Only what requires a gradient gets one, and the same one as among all."""
    case = CASES["2d"]
    tensors = case.tensors(torch.float32, "cpu")
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    value = neighborhood_attention(**leaves, **case.options).square().sum()
    together = torch.autograd.grad(value, leaves[wanted])
    tensors[wanted].requires_grad_()
    value = neighborhood_attention(**tensors, **case.options).square().sum()
    torch.testing.assert_close(torch.autograd.grad(value, tensors[wanted]), together)


def test_gradient_of_lse_alone() -> None:
    case = CASES["2d"]
    results = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        q, *_ = leaves = [t.requires_grad_() for t in case.tensors(dtype, "cpu").values()]
        options = case.options | {"extra_keys": leaves[3], "extra_values": leaves[4]}
        _, lse = neighborhood_attention(*leaves[:3], **options, return_lse=True, backend=backend)
        results.append(torch.autograd.grad(lse.sum(), q)[0].double())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_second_derivative_says_what_to_do() -> None:
    q = torch.randn(1, 6, 2, 16, requires_grad=True)
    out = neighborhood_attention(q, q, q, window=3)
    (gradient,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_use_backend() -> None:
    q = torch.randn(1, 6, 2, 5, dtype=torch.float64)  # only the reference takes these
    with use_backend("reference"):
        assert neighborhood_attention(q, q, q, window=3).shape == q.shape
    with pytest.raises(ValueError, match="q has head_dim 5"):
        neighborhood_attention(q, q, q, window=3)
    with pytest.raises(NotImplementedError, match="float64"):
        neighborhood_attention(*[torch.zeros(1, 6, 2, 8).double()] * 3, window=3)
