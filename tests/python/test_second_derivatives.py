"""Second derivatives of every family: right, or refused by name; never a wrong number.

The truth is a difference quotient of the reference's gradient in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp
from transform_cases import PROBLEMS, Problem, inputs, leaves

import tileattn

#: Of a number.
Function = Callable[[Tensor], Tensor]


def along(problem: Problem, dtype: torch.dtype, backend: str | None) -> Function:
    """A number from all results, by the distance that all tensors go along a direction."""
    function, _ = problem
    primals, tangents = ([x.to(dtype) for x in xs] for xs in inputs(problem, torch.float32))

    def value(distance: Tensor) -> Tensor:
        moved = (p + 0.3 * distance * t for p, t in zip(primals, tangents, strict=True))
        results = leaves(function(*moved, backend=backend))
        return sum(r.masked_fill(r.isinf(), 0.0).to(dtype).sin().sum() for r in results)  # type: ignore[return-value]

    return value


def by_jvp(f: Function) -> Function:
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


def by_backward(f: Function) -> Function:
    def derivative(x: Tensor) -> Tensor:
        return torch.autograd.grad(f(x), x, create_graph=True)[0]

    return derivative


def by_forward_ad(f: Function) -> Function:
    def derivative(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangent = forward_ad.unpack_dual(f(dual)).tangent
            assert tangent is not None
            return tangent

    return derivative


WAYS: dict[str, tuple[Callable[[Function], Function], Callable[[Function], Function]]] = {
    "jvp of jvp": (by_jvp, by_jvp),
    "jvp of grad": (by_jvp, grad),
    "grad of jvp": (grad, by_jvp),
    "jacfwd of jacfwd": (jacfwd, jacfwd),
    "jacfwd of jacrev": (jacfwd, jacrev),
    "jacrev of jacfwd": (jacrev, jacfwd),
    "jacrev of jacrev": (jacrev, jacrev),
    "double backward": (by_backward, by_backward),
    "forward_ad of a backward": (by_forward_ad, by_backward),
}
#: The linear operators, whose tangents are passes of the forward.
TWICE = {"linear", "segment_state", "prefix", "clamped", "wersa", "nn.Lightning"}
TWICE_BY = {"jvp of jvp", "jacfwd of jacfwd"}
#: Plain PyTorch around an operator of its own, with and without a backend.
LAST = {"local linear"}


@functools.cache
def truth(name: str) -> float:
    value = along(PROBLEMS[name], torch.float64, "reference")

    def slope(at: float) -> float:
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(value(x), x)[0])

    step = 1e-6
    return (slope(step) - slope(-step)) / (2 * step)


def second(way: str, value: Function, dtype: torch.dtype) -> float:
    outer, inner = WAYS[way]
    at = torch.zeros((), dtype=dtype, requires_grad=True)
    return outer(inner(value))(at).item()


def second_or_none(way: str, value: Function, dtype: torch.dtype) -> float | None:
    """None where it is refused by name."""
    try:
        return second(way, value, dtype)
    except NotImplementedError as error:
        if "have no second derivative" not in str(error):
            raise
        return None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(PROBLEMS.keys() - LAST))
def test_of_the_reference(name: str, way: str) -> None:
    value = along(PROBLEMS[name], torch.float64, "reference")
    assert second(way, value, torch.float64) == pytest.approx(truth(name), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_of_kernels(name: str, way: str) -> None:
    value = along(PROBLEMS[name], torch.float32, None)
    if name.split(",")[0] in TWICE and way in TWICE_BY:
        found: float | None = second(way, value, torch.float32)
    else:
        found = second_or_none(way, value, torch.float32)
    assert found is None or found == pytest.approx(truth(name), rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_backward_of_a_dual(name: str, backend: str | None) -> None:
    """Torch has no such backward of a softmax and others, and says so."""
    dtype = torch.float64 if backend else torch.float32
    x = torch.zeros((), dtype=dtype, requires_grad=True)
    try:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangent = forward_ad.unpack_dual(along(PROBLEMS[name], dtype, backend)(dual)).tangent
            assert tangent is not None
            found = torch.autograd.grad(tangent, x)[0]
    except RuntimeError:  # NotImplementedError is one
        return
    assert float(found) == pytest.approx(truth(name), rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", ["attention", "neighborhood", "sinks", "linear", "prefix"])
def test_mixed(name: str, backend: str | None) -> None:
    """First along v, then along q: the kernels have both, of softmax attention too."""
    function, _ = PROBLEMS[name]

    def mixed(dtype: torch.dtype, backend: str | None) -> Tensor:
        (q, k, v, *rest), (dq, _, dv, *_) = (
            [x.to(dtype) for x in xs] for xs in inputs(PROBLEMS[name], torch.float32)
        )

        def along_v(q: Tensor) -> Tensor:
            def out(v: Tensor) -> Tensor:
                return leaves(function(q, k, v, *rest, backend=backend))[0]

            return jvp(out, (v,), (dv,))[1]

        if dtype == torch.float64:  # the truth
            return (along_v(q + 1e-6 * dq) - along_v(q - 1e-6 * dq)) / 2e-6
        return jvp(along_v, (q,), (dq,))[1]

    expected = mixed(torch.float64, "reference")
    torch.testing.assert_close(
        mixed(torch.float32, backend).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_unfused_pair() -> None:
    q, k = (torch.rand(1, 5, 2, 8, dtype=torch.float64) for _ in range(2))

    def loss(q: Tensor) -> Tensor:
        return tileattn.neighborhood_qk(q, k, window=3).square().sum()

    expected = torch.autograd.functional.hessian(loss, q)
    for jacobian in (jacfwd, jacrev):
        for gradient in (jacfwd, grad):
            torch.testing.assert_close(jacobian(gradient(loss))(q), expected)
