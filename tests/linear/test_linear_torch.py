"""Linear attention as torch sees it: opcheck, compile, autocast, partial gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import Case
from torch import Tensor

from tileattn import linear_attention, segment_state
from tileattn.linear._op import FEATURE_MAPS

FORWARD = torch.ops.tileattn.linear_attention_forward.default
BACKWARD = torch.ops.tileattn.linear_attention_backward.default
SEGMENT_STATE = torch.ops.tileattn.segment_state.default

CASES = {
    "plain": Case(len=9, dim=8, dim_v=5, state=False),
    "state": Case(len=9, dim=8, dim_v=5),
    "constant_decay": Case(len=9, dim=8, dim_v=5, decay="h"),
    "decay": Case(len=9, dim=8, dim_v=5, decay="bth", options={"normalize": True}),
    "packed": Case(seqlens=(5, 0, 3), dim=8, dim_v=5, decay="bth"),
    "bidirectional": Case(len=9, dim=8, dim_v=5, options={"causal": False}),
    "taylor2": Case(len=9, dim=4, dim_v=5, decay="bth", options={"feature_map": "taylor2"}),
}
NAMES = ("q", "k", "v", "log_decay", "s", "z", "cu_seqlens")


def raw(name: str, requires_grad: bool) -> tuple[list[Tensor | None], bool, bool, int]:
    """Tensors as the raw ops take them; causal; normalize; feature_map."""
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    for key, tensor in tensors.items():
        tensor.requires_grad_(requires_grad and key != "cu_seqlens")
    options = case.options
    found = [tensors.get(n) for n in NAMES]
    feature_map = FEATURE_MAPS.index(options.get("feature_map"))
    return found, options.get("causal", True), options.get("normalize", False), feature_map


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_opcheck_forward(name: str, requires_grad: bool) -> None:
    tensors, *options = raw(name, requires_grad)
    torch.library.opcheck(FORWARD, (*tensors, 0.25, *options))


@pytest.mark.parametrize("name", CASES)
def test_opcheck_backward(name: str) -> None:
    tensors, causal, normalize, feature_map = raw(name, False)
    out, denominator, s, z = FORWARD(*tensors, 0.25, causal, normalize, feature_map)
    kept = (out, denominator) if normalize else (None, None)
    arriving = (torch.randn_like(out), torch.randn_like(s), torch.ones_like(z))
    q_k_v, rest = tensors[:3], tensors[3:]
    arguments = (*arriving[:2], arriving[2] if normalize else None, *q_k_v, *kept, *rest)
    for decay_grad in {False, tensors[3] is not None}:
        options = (0.25, causal, normalize, decay_grad, feature_map)
        torch.library.opcheck(BACKWARD, (*arguments, *options))


@pytest.mark.parametrize("name", ["plain", "constant_decay", "decay", "packed", "taylor2"])
def test_opcheck_segment_state(name: str) -> None:
    (_, *tensors), _, normalize, feature_map = raw(name, True)
    torch.library.opcheck(SEGMENT_STATE, (*tensors, 4, normalize, feature_map))


def test_no_feature_map_by_default() -> None:
    tensors, *options = raw("decay", False)
    for result, expected in zip(
        FORWARD(*tensors, 0.25, *options[:2]), FORWARD(*tensors, 0.25, *options), strict=True
    ):
        assert torch.equal(result, expected)


def inputs(name: str) -> dict[str, Any]:
    tensors = CASES[name].tensors(torch.float32)
    state = tuple(tensors.pop(n) for n in ("s", "z") if n in tensors)
    if state:
        tensors["initial_state"] = state if len(state) == 2 else state[0]  # type: ignore
    return tensors | CASES[name].options


def step(arguments: dict[str, Any], k: Tensor) -> Tensor:
    """Uses out, the final state, and a decay that requires a gradient."""
    out, state = linear_attention(**(arguments | {"k": k}), return_final_state=True)
    state = state[0] if isinstance(state, tuple) else state
    return out.square().sum() + state.sum()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CASES)
def test_compile_without_graph_breaks(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    values = []
    for function in (step, compiled):
        arguments = inputs(name)
        k = arguments["k"].requires_grad_()
        value = function(arguments, k)
        values.append([value, *torch.autograd.grad(value, k)])
    for eager, other in zip(*values, strict=True):
        torch.testing.assert_close(other, eager)


def test_compile_segment_state() -> None:
    torch.compiler.reset()
    k, v = torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 5)
    compiled = torch.compile(segment_state, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(k, v), segment_state(k, v))


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return linear_attention(q, q, q, feature_map="elu1", normalize=True)

    q = torch.randn(1, 6, 2, 16)
    exported = torch.export.export(Model(), (q,))
    torch.testing.assert_close(exported.module()(q), Model()(q))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast(target: torch.dtype) -> None:
    """q, k and v are cast; the decay and the state are not."""
    arguments = inputs("constant_decay")
    leaves = [arguments[n].requires_grad_() for n in ("q", "k", "v", "log_decay", "initial_state")]
    with torch.autocast("cpu", dtype=target):
        out, state = linear_attention(**arguments, return_final_state=True)
    assert out.dtype == target and state.dtype == torch.float32
    low = arguments | {n: arguments[n].to(target) for n in ("q", "k", "v")}
    assert torch.equal(out, linear_attention(**low))
    gradients = torch.autograd.grad(out.float().sum(), leaves)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_decay_of_any_dtype(dtype: torch.dtype) -> None:
    arguments = inputs("decay")
    decay = arguments["log_decay"].to(dtype)
    expected = linear_attention(**(arguments | {"log_decay": decay.float()}))
    arguments["log_decay"] = decay.requires_grad_()
    out = linear_attention(**arguments)
    assert torch.equal(out, expected)
    assert torch.autograd.grad(out.sum(), decay)[0].dtype == dtype


def test_meta_tensors() -> None:
    q, k = torch.empty(2, 5, 4, 16, device="meta"), torch.empty(2, 5, 2, 16, device="meta")
    v = torch.empty(2, 5, 2, 24, device="meta")
    out, (s, z) = linear_attention(q, k, v, normalize=True, return_final_state=True)
    assert out.shape == (2, 5, 4, 24) and s.shape == (2, 4, 16, 24) and z.shape == (2, 4, 16)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "log_decay", "initial_state"])
@pytest.mark.parametrize("use", ["out", "state"])
def test_one_gradient_alone(wanted: str, use: str) -> None:
    """Only what requires a gradient gets one, and the same one as among all."""

    def value(arguments: dict[str, Any]) -> Tensor:
        out, state = linear_attention(**arguments, return_final_state=True)
        return out.square().sum() if use == "out" else state.square().sum()

    names = ["q", "k", "v", "log_decay", "initial_state"]
    arguments = inputs("constant_decay")
    leaves = [arguments[n].clone().requires_grad_() for n in names]
    together = torch.autograd.grad(value(dict(zip(names, leaves, strict=True))), leaves)
    arguments[wanted].requires_grad_()
    (alone,) = torch.autograd.grad(value(arguments), arguments[wanted])
    torch.testing.assert_close(alone, together[names.index(wanted)])


def test_second_derivative_says_what_to_do() -> None:
    q = torch.randn(2, 4, 2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear_attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative.*backend='reference'"):
        gradient.sum().backward()


def test_no_gradient_no_graph() -> None:
    q = torch.randn(1, 6, 2, 16, requires_grad=True)
    with torch.no_grad():
        assert not linear_attention(q, q, q).requires_grad
    with torch.inference_mode():
        linear_attention(q, q, q)
    assert linear_attention(q, q, q).requires_grad
