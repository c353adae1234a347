"""The ops as torch sees them: opcheck, compile, autocast, vmap, meta tensors, partial gradients."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from cases import Case, Tensors
from torch import Tensor

from tileattn import attention, use_backend
from tileattn.nn import Attention

FORWARD = torch.ops.tileattn.attention_forward.default
BACKWARD = torch.ops.tileattn.attention_backward.default

CASES = {
    "plain": Case(len_q=9, len_k=13, dim=16),
    "bias and sinks": Case(len_q=9, len_k=13, dim=16, bias="q", sinks=True),
    "bias in float32": Case(len_q=9, len_k=13, dim=16, bias="b", alibi="h"),
    "packed": Case(seqlens=((5, 7), (0, 3)), dim=16, alibi="bh"),
    "value dim": Case(len_q=9, len_k=13, dim=16, dim_v=40),
    "transposed": Case(len_q=9, len_k=13, dim=16),
}
NAMES = ("q", "k", "v", "bias", "alibi_slopes", "sinks", "cu_seqlens_q", "cu_seqlens_k")


def raw_arguments(
    name: str, torch_device: str, requires_grad: bool, deterministic: bool = False
) -> tuple[Any, ...]:
    dtype = torch.float32 if torch_device == "cpu" else torch.float16
    tensors = CASES[name].tensors(dtype, torch_device)
    if name == "transposed":
        tensors = {n: t.transpose(1, 2).contiguous().transpose(1, 2) for n, t in tensors.items()}
    for key in ("q", "k", "v", "bias", "sinks"):
        if key in tensors:
            tensors[key].requires_grad_(requires_grad)
    return (*(tensors.get(n) for n in NAMES), 0.25, 0.0, 4, -1, 1, True, deterministic)


@pytest.mark.parametrize("low_parts", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_opcheck_forward(
    name: str, requires_grad: bool, low_parts: bool, torch_device: str
) -> None:
    arguments = raw_arguments(name, torch_device, requires_grad)
    torch.library.opcheck(FORWARD, (*arguments, low_parts))


@pytest.mark.parametrize("low_parts", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_opcheck_backward(
    name: str, deterministic: bool, low_parts: bool, torch_device: str
) -> None:
    arguments = raw_arguments(name, torch_device, False, deterministic)
    out, lse, *low = FORWARD(*arguments, low_parts)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    tensors, options = arguments[:3], arguments[3:]
    for bias_grad in {False, arguments[3] is not None}:
        whole = (dout, dlse, *tensors, out, lse, *low, *options, bias_grad)
        torch.library.opcheck(BACKWARD, whole)


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
def test_only_gradients_keep_low_parts(target: torch.dtype) -> None:
    """In inference nothing is allocated for a backward, and float32 loses nothing of out."""
    q = torch.randn(1, 6, 2, 16, dtype=target, requires_grad=True)
    with torch.no_grad():
        assert attention(q, q, q).grad_fn is None
    saved = [t for t in attention(q, q, q).grad_fn.saved_tensors if t is not None]
    sizes = {torch.int8: 6 * 2 * 16 if target == torch.bfloat16 else 0, torch.float32: 6 * 2}
    for dtype, size in sizes.items():
        assert [t.numel() for t in saved if t.dtype == dtype][-1] == size, dtype


def step(tensors: Tensors, **options: Any) -> Tensor:
    out, lse = attention(**tensors, return_lse=True, **options)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    return out.square().sum() + finite.sum()


def assert_same_step(compiled: Any, case: Case, **options: Any) -> None:
    """The same value and gradients as eager code."""
    values = []
    for function in (step, compiled):
        tensors = case.tensors(torch.float32, "cpu")
        leaves = [
            t.requires_grad_() for n, t in tensors.items() if n in ("q", "k", "v", "bias", "sinks")
        ]
        value = function(tensors, **options)
        values.append([value, *torch.autograd.grad(value, leaves)])
    for eager, other in zip(*values, strict=True):
        torch.testing.assert_close(other, eager)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CASES)
def test_compile_without_graph_breaks(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same_step(compiled, CASES[name], causal=True, window=(6, 0), sink_tokens=1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    assert_same_step(compiled, CASES["bias and sinks"], causal=True)


def test_compiled_code_follows_use_backend() -> None:
    """Outside and inside of the compiled function."""
    torch.compiler.reset()
    tensors = CASES["plain"].tensors(torch.float64, "cpu")  # float64: only the reference runs it
    compiled = torch.compile(lambda: attention(**tensors), fullgraph=True, backend="eager")
    with use_backend("reference"):
        expected = compiled()
    with pytest.raises(Exception, match="float64"):
        compiled()

    def inside() -> Any:
        with use_backend("reference"):
            return attention(**tensors)

    torch.testing.assert_close(torch.compile(inside, fullgraph=True, backend="eager")(), expected)


def test_compile_reports_bad_input() -> None:
    torch.compiler.reset()
    q = torch.zeros(1, 3, 2, 16)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="window: left is -1"):
        compiled(q, q, q, window=(-1, 0))


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            out = attention(q, q, q, causal=True)
            assert isinstance(out, Tensor)
            return out

    q = torch.randn(1, 6, 2, 16)
    exported = torch.export.export(Model(), (q,))
    assert any("tileattn" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(q), Model()(q))


def test_module_compiles() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    module, x = Attention(64, 4, causal=True, learn_sinks=True), torch.randn(2, 9, 64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast(target: torch.dtype) -> None:
    """q, k and v are cast; a float32 bias and sinks are not."""
    tensors = Case(bias="q", sinks=True).tensors(torch.float32, "cpu")
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    with torch.autocast("cpu", dtype=target):
        out = attention(**leaves)
    assert out.dtype == target
    low = {n: t.to(target) if n in ("q", "k", "v") else t for n, t in tensors.items()}
    torch.testing.assert_close(out, attention(**low), rtol=0, atol=0)
    gradients = torch.autograd.grad(out.float().sum(), list(leaves.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_autocast_joins_dtypes() -> None:
    q, k = torch.randn(1, 3, 2, 16), torch.randn(1, 3, 2, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, k).dtype == torch.bfloat16
        bias = torch.zeros(1, 1, 1, 3, dtype=torch.float16)
        assert attention(q, k, k, bias=bias).dtype == torch.bfloat16


def test_second_derivative_says_what_to_do() -> None:
    q = torch.randn(1, 4, 2, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative.*backend='reference'"):
        gradient.sum().backward()


def test_meta_tensors() -> None:
    q, k = torch.empty(2, 5, 4, 16, device="meta"), torch.empty(2, 7, 2, 16, device="meta")
    v = torch.empty(2, 7, 2, 24, device="meta")
    out, lse = attention(q, k, v, return_lse=True)
    assert out.shape == (2, 5, 4, 24) and lse.shape == (2, 5, 4) and lse.dtype == torch.float32


def test_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        tensors = CASES["packed"].tensors(torch.float32, "cpu")
        assert attention(**tensors).shape == (5, 4, 16)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "bias", "sinks"])
def test_one_gradient_alone(wanted: str) -> None:
    """Only what requires a gradient gets one, and the same one as among all."""
    case = Case(bias="h", sinks=True)
    tensors = case.tensors(torch.float32, "cpu")
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    together = torch.autograd.grad(attention(**leaves).square().sum(), leaves[wanted])
    tensors[wanted].requires_grad_()
    alone = torch.autograd.grad(attention(**tensors).square().sum(), tensors[wanted])
    torch.testing.assert_close(alone[0], together[0])


def test_gradient_of_lse_alone_and_of_out_alone() -> None:
    q = torch.randn(1, 6, 2, 16, requires_grad=True)
    exact = q.detach().double().requires_grad_()
    for pick in (0, 1):
        ours = attention(q, q, q, return_lse=True)[pick].sum()
        theirs = attention(exact, exact, exact, return_lse=True, backend="reference")[pick].sum()
        (actual,), (expected,) = torch.autograd.grad(ours, q), torch.autograd.grad(theirs, exact)
        torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)


def test_nan_gradient_of_empty_rows_is_dropped() -> None:
    """A difference of two lse is NaN where both are -inf; those rows still have gradient 0."""
    q = torch.randn(1, 6, 2, 16, requires_grad=True)
    k = torch.randn(1, 3, 2, 16, requires_grad=True)
    sinks = torch.full((2,), -torch.inf, requires_grad=True)
    _, lse = attention(q, k, k, sinks=sinks, causal=True, return_lse=True)
    gradients = torch.autograd.grad((lse - lse.detach()).square().sum(), (q, k, sinks))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_no_gradient_no_graph() -> None:
    q = torch.randn(1, 6, 2, 16, requires_grad=True)
    with torch.no_grad():
        assert not attention(q, q, q).requires_grad
    with torch.inference_mode():
        attention(q, q, q)
    assert attention(q, q, q).requires_grad
    assert not attention(*[q.detach()] * 3).requires_grad


def test_inputs_stay_as_they_are() -> None:
    tensors = Case(bias="q", sinks=True, alibi="h").tensors(torch.float32, "cpu")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    leaves = {n: t.requires_grad_(n != "alibi_slopes") for n, t in tensors.items()}
    attention(**leaves).sum().backward()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name


def test_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    q = torch.randn(1, 6, 2, 16, requires_grad=True)
    (plain,) = torch.autograd.grad(attention(q, q, q).square().sum(), q)
    again = checkpoint(lambda x: attention(x, x, x).square().sum(), q, use_reentrant=False)
    (saved,) = torch.autograd.grad(again, q)
    torch.testing.assert_close(saved, plain)
