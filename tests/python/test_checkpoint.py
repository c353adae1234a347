"""torch.utils.checkpoint around calls of a chosen backend: backward computes again with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from tileattn import attention, backend, dense, linear_attention, use_backend

Function = Callable[[Tensor], Tensor]
saved = partial(checkpoint, use_reentrant=False)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend of every call of ``attention``, in order."""
    calls: list[str] = []

    def requested(name: str | None) -> str:
        asked = backend.requested_backend(name)
        calls.append(backend.backend_for(asked, torch.device("cpu")))
        return asked

    monkeypatch.setattr(dense, "requested_backend", requested)
    return calls


def layer(x: Tensor) -> Tensor:
    return attention(x, x, x, causal=True) + x


def inside(x: Tensor) -> Tensor:
    with use_backend("reference"):
        return layer(x)


def mixed(x: Tensor) -> Tensor:
    """The first call is in a block of the function's own."""
    return layer(inside(x))


def nested(x: Tensor) -> Tensor:
    """The outer checkpoint has no call of its own."""
    return saved(layer, saved(layer, x))


def selective(x: Tensor) -> Tensor:
    def policy(context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        keep = op is torch.ops.aten.add.Tensor
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    return saved(layer, x, context_fn=contexts)


#: Functions, and the backends of the calls of one forward in a block of "cpu" or "reference".
FUNCTIONS: dict[str, tuple[Function, Callable[[str], list[str]]]] = {
    "around": (partial(saved, layer), lambda name: [name]),
    "inside": (partial(saved, inside), lambda name: ["reference"]),
    "mixed": (partial(saved, mixed), lambda name: ["reference", name]),
    "nested": (partial(saved, nested), lambda name: [name] * 2),
    "selective": (selective, lambda name: [name]),
    "not stopped early": (partial(saved, layer, early_stop=False), lambda name: [name]),
    "under other hooks": (
        lambda x: with_hooks(partial(saved, layer), x),
        lambda name: [name],
    ),
}


def with_hooks(function: Function, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return function(x)


def value(function: Function, x: Tensor) -> Tensor:
    return function(x).square().sum()


@pytest.mark.parametrize("other", ["auto", "reference"])
@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_backward_computes_with_the_backend_of_the_forward(
    case: str, name: str, other: str, ran: list[str]
) -> None:
    function, calls = FUNCTIONS[case]
    x = torch.randn(1, 6, 2, 16, requires_grad=True)
    with use_backend(name):
        (expected,) = torch.autograd.grad(value(function, x), x)
        ran.clear()
        result = value(function, x)
    assert ran == calls(name)
    with use_backend(other):
        (gradient,) = torch.autograd.grad(result, x)
    assert set(ran) == set(calls(name))
    assert len(ran) > len(calls(name))
    assert torch.equal(gradient, expected)
    assert attention_backend(ran, x) == "cpu"  # afterwards nothing is left of it


def attention_backend(ran: list[str], x: Tensor) -> str:
    layer(x)
    return ran[-1]


def test_another_family_and_a_dtype_that_only_the_reference_takes() -> None:
    x = torch.randn(1, 6, 2, 16, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return linear_attention(x, x, attention(x, x, x))

    with use_backend("reference"):
        (expected,) = torch.autograd.grad(value(function, x), x)
        result = value(partial(saved, function), x)
    torch.testing.assert_close(torch.autograd.grad(result, x)[0], expected)


def test_hooks_stay_as_they_were() -> None:
    packed: list[str] = []

    def hook(name: str) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(
            lambda t: packed.append(name) or t, lambda t: t
        )

    x = torch.randn(1, 6, 2, 16, requires_grad=True)
    with hook("outer"):
        with hook("inner"):
            layer(x).sum()
            assert set(packed) == {"inner"}
        packed.clear()
        layer(x).sum()
    assert set(packed) == {"outer"}


def test_checkpoint_in_a_compiled_function() -> None:
    torch.compiler.reset()
    x = torch.randn(1, 6, 2, 16, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(partial(saved, layer), backend="aot_eager", fullgraph=True)
    with use_backend("reference"):
        (expected,) = torch.autograd.grad(value(layer, x), x)
        result = value(compiled, x)
    torch.testing.assert_close(torch.autograd.grad(result, x)[0], expected)
