"""Every family under torch's transforms: forward-mode AD, torch.func, torch.vmap.

The truth of a tangent is a difference quotient of the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_cases import LIMIT, rms
from tolerance import GRADIENT_RATIO, assert_as_exact
from torch import Tensor
from torch.autograd import forward_ad
from transform_cases import OPERATORS, PROBLEMS, Problem, inputs, leaves

import tileattn
from tileattn import attention, linear_attention, neighborhood_attention, segment_state


def by_jvp(f: Callable[..., Any], primals: Any, tangents: Any) -> list[Tensor]:
    return leaves(torch.func.jvp(f, primals, tangents)[1])


def by_forward_ad(f: Callable[..., Any], primals: Any, tangents: Any) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        return [forward_ad.unpack_dual(result).tangent for result in leaves(f(*duals))]  # type: ignore[misc]


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(f, backend="aot_eager")


MODES: dict[str, Callable[..., list[Tensor]]] = {
    "jvp under no_grad": torch.no_grad()(by_jvp),
    "forward_ad": by_forward_ad,
    "forward_ad under no_grad": torch.no_grad()(by_forward_ad),
    "forward_ad of leaves": lambda f, p, t: by_forward_ad(
        f, [x.detach().requires_grad_() for x in p], t
    ),
    "jvp, compiled": lambda f, p, t: compiled(lambda p, t: by_jvp(f, p, t))(p, t),
    "jvp of compiled": lambda f, p, t: by_jvp(compiled(f), p, t),
    "forward_ad, compiled": lambda f, p, t: compiled(lambda p, t: by_forward_ad(f, p, t))(p, t),
    "forward_ad of compiled": lambda f, p, t: by_forward_ad(compiled(f), p, t),
    "jacfwd": lambda f, p, t: by_jacfwd(f, p, t),
}


def by_jacfwd(f: Callable[..., Any], primals: Any, tangents: Any) -> list[Tensor]:
    """The directional derivative from the whole Jacobian along the direction."""
    zero = torch.zeros((), dtype=primals[0].dtype)

    def along(step: Tensor) -> Any:
        return f(*(p + step * t for p, t in zip(primals, tangents, strict=True)))

    return leaves(torch.func.jacfwd(along)(zero))


def quotient(problem: Problem, dtype: torch.dtype, step: float = 1e-6) -> list[Tensor]:
    """Of the reference in float64, where primals and tangents are those of ``dtype``."""
    primals, tangents = ([x.double() for x in xs] for xs in inputs(problem, dtype))
    function, _ = problem

    def at(distance: float) -> list[Tensor]:
        moved = (p + distance * t for p, t in zip(primals, tangents, strict=True))
        return leaves(function(*moved, backend="reference"))

    pairs = zip(at(step), at(-step), strict=True)
    return [((a - b) / (2 * step)).nan_to_num(0.0) for a, b in pairs]  # lse of empty rows: -inf


def check(problem: Problem, tangents_by: Callable[..., list[Tensor]]) -> None:
    function, _ = problem
    primals, tangents = inputs(problem, torch.float32)
    expected = quotient(problem, torch.float32)
    peers = by_jvp(lambda *x: function(*x, backend="reference"), primals, tangents)
    actual = tangents_by(function, primals, tangents)
    for n, (ours, exact, peer) in enumerate(zip(actual, expected, peers, strict=True)):
        assert ours is not None, f"result {n} has no tangent"
        assert_as_exact(f"tangent {n}", ours.detach(), exact, peer, ratio=GRADIENT_RATIO)


@pytest.mark.parametrize("name", PROBLEMS)
def test_tangents(name: str) -> None:
    check(PROBLEMS[name], by_jvp)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATORS)
def test_tangents_by(mode: str, name: str) -> None:
    check(OPERATORS[name], MODES[mode])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("name", ["attention", "neighborhood", "linear, normalized"])
def test_tangents_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """At most a few roundings away; what the reference computes in float32 is no measure here."""
    function, shapes = PROBLEMS[name]
    states = len(shapes) - 3

    def rounded(xs: Any) -> tuple[Tensor, ...]:
        return tuple(x.to(dtype) if n < 3 else x for n, x in enumerate(xs))

    primals, tangents = inputs((function, shapes), dtype)
    exact = tuple(x.float() for x in primals), tuple(x.float() for x in tangents)
    actual = by_jvp(function, rounded(exact[0]), rounded(exact[1]))
    expected = quotient((function, shapes), dtype)
    assert actual[0].dtype == dtype and states in (0, 2)
    for ours, truth in zip(actual, expected, strict=True):
        error, size = rms(ours.double() - truth), rms(truth)
        assert error <= 3 * LIMIT[dtype] * size, f"error {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("name", OPERATORS)
def test_functional_gradient(name: str, how: str) -> None:
    """That of torch.autograd, bit by bit."""
    function, _ = OPERATORS[name]
    primals, _ = inputs(OPERATORS[name], torch.float32)

    def loss(*tensors: Tensor) -> Tensor:
        return sum(r.masked_fill(r.isinf(), 0.0).sin().sum() for r in leaves(function(*tensors)))  # type: ignore[return-value]

    gradient = torch.func.grad(loss, argnums=tuple(range(len(primals))))
    actual = (compiled(gradient) if how == "compiled" else gradient)(*primals)
    own = [p.clone().requires_grad_() for p in primals]
    for ours, expected in zip(actual, torch.autograd.grad(loss(*own), own), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap(name: str) -> None:
    """Values and gradients of each element, some tensors shared by all."""
    function, _ = OPERATORS[name]
    primals, tangents = inputs(OPERATORS[name], torch.float32)
    pair = [torch.stack([p, t]) for p, t in zip(primals[:-1], tangents[:-1], strict=True)]
    shared = primals[-1]

    def gradient(*tensors: Tensor) -> Any:
        return torch.func.grad(lambda *x: leaves(function(*x))[0].square().sum())(*tensors)

    for f in (function, gradient):
        mapped = torch.vmap(f, in_dims=(*(0 for _ in pair), None))(*pair, shared)
        each = [f(*(t[n] for t in pair), shared) for n in range(2)]
        for ours, *both in zip(leaves(mapped), *map(leaves, each), strict=True):
            torch.testing.assert_close(ours, torch.stack(both), rtol=0, atol=0)


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "bias": (
        lambda x: attention(x[0], x[0], x[0], bias=x[:, 0, :, :, 0].mT.unsqueeze(2)),
        "in bias",
    ),
    "softcap": (lambda x: attention(x[0], x[0], x[0], softcap=1.0), "softcap"),
    "channels": (lambda x: attention(*[x[0].repeat(1, 1, 1, 9)] * 3), "more than 256 channels"),
    "grid": (
        lambda x: neighborhood_attention(*[x[0].repeat(1, 1, 1, 9)] * 3, window=3),
        "more than 256 channels",
    ),
    "decay": (lambda x: linear_attention(x[0], x[0], x[0], log_decay=-x[0, ..., 0]), "log_decay"),
    "taylor2": (lambda x: linear_attention(x[0], x[0], x[0], feature_map="taylor2"), "taylor2"),
    "segment": (lambda x: segment_state(x[0], x[0], log_decay=-x[0, ..., 0]), "log_decay"),
    "step": (lambda x: step(x[0, 0]), "linear_attention_step has no"),
    "second": (
        torch.func.grad(lambda x: attention(x[0], x[0], x[0]).square().sum()),
        "no second derivative",
    ),
}


def step(x: Tensor) -> Tensor:
    return tileattn.linear_attention_step(x, x, x, torch.zeros(9, 2, 16, 16))


@pytest.mark.parametrize("mode", ["jvp under no_grad", "forward_ad", "jvp, compiled"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_tangent_says_so(name: str, mode: str) -> None:
    function, message = REFUSED[name]
    x = torch.rand(1, 2, 9, 2, 16)
    with pytest.raises(NotImplementedError, match=message):
        MODES[mode](function, (x,), (x,))


def test_a_step_refuses_every_transform() -> None:
    x = torch.rand(9, 2, 16, requires_grad=True)
    message = "linear_attention_step has no"
    with pytest.raises(NotImplementedError, match=message):
        step(x).sum().backward()
    gradient = torch.func.grad(lambda x: step(x).sum())
    for function in (gradient, compiled(gradient)):
        with pytest.raises(NotImplementedError, match=message):
            function(x.detach())
    with pytest.raises(NotImplementedError, match="no torch.vmap rule"):
        torch.vmap(step)(x.detach()[None])
