"""Every family under torch's transforms: forward-mode AD, torch.func, torch.vmap.

The truth of a tangent is a difference quotient of the reference in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_cases import LIMIT, rms
from tolerance import GRADIENT_RATIO, assert_as_exact
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

import tileattn
from tileattn import attention, linear_attention, neighborhood_attention, segment_state

Shapes = tuple[tuple[int, ...], ...]
#: What is differentiated, (*tensors, backend=None) -> results, and the shapes of the tensors.
Problem = tuple[Callable[..., Any], Shapes]

QKV = ((2, 9, 4, 16), (2, 9, 2, 16), (2, 9, 2, 24))
SAME = ((2, 9, 2, 16),) * 3
GRID = ((2, 4, 5, 4, 16), (2, 4, 5, 2, 16), (2, 4, 5, 2, 24))
PACKED = ((9, 4, 16), (9, 2, 16), (9, 2, 24))
S, Z = (2, 4, 16, 24), (2, 4, 16)
SEQLENS = torch.tensor([0, 4, 4, 8], dtype=torch.int32)  # the last token belongs to no sequence


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def of(function: Callable[..., Any], shapes: Shapes, *names: str, **options: Any) -> Problem:
    """The last tensors are the keywords ``names``."""

    def problem(*tensors: Tensor, backend: str | None = None) -> Any:
        first = len(tensors) - len(names)
        given = dict(zip(names, tensors[first:], strict=True))
        return function(*tensors[:first], **given, **options, backend=backend)

    return problem, shapes


def with_state(function: Callable[..., Any], shapes: Shapes, **options: Any) -> Problem:
    """An initial state, which is a pair where normalized."""
    if function is linear_attention:
        options["return_final_state"] = True

    def problem(*tensors: Tensor, backend: str | None = None) -> Any:
        *rest, s = tensors[:-1] if options.get("normalize") else tensors
        state = (s, tensors[-1]) if options.get("normalize") else s
        return function(*rest, initial_state=state, **options, backend=backend)

    return problem, shapes


def of_v(function: Callable[..., Any], **options: Any) -> Problem:
    def problem(v: Tensor, backend: str | None = None) -> Any:
        q, k = (positive(*shape).to(v.dtype) for shape in QKV[:2])
        return function(q, k, v, **options, backend=backend)

    return problem, QKV[2:]


def plain(function: Callable[..., Any], shapes: Shapes, **options: Any) -> Problem:
    """A function without kernels and backends."""
    return (lambda *tensors, backend=None: function(*tensors, **options)), shapes


def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    spec: dict[str, Any] = {"window": (3, 2), "stride": (2, 1), "causal": (True, False)}
    return tileattn.neighborhood_av(tileattn.neighborhood_qk(q, k, **spec).softmax(-1), v, **spec)


def merged(a: Tensor, b: Tensor, lse_a: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    empty = torch.zeros_like(lse_b, dtype=torch.bool)
    empty[:, 0] = True
    return tileattn.merge_attention([a, b], [lse_a, lse_b.masked_fill(empty, -torch.inf)])


def of_module(module: torch.nn.Module, *shape: int) -> Problem:
    own = {torch.float32: module, torch.float64: copy.deepcopy(module).double()}

    def problem(x: Tensor, backend: str | None = None) -> Any:
        return own[x.dtype](x, backend=backend)

    return problem, (shape,)


ATTENTION = of(attention, QKV, causal=True, window=(4, 0), return_lse=True)
NEIGHBORHOOD = of(neighborhood_attention, GRID, window=(3, 4), return_lse=True)
LINEAR = with_state(linear_attention, (*QKV, S), log_decay=-positive(4))
SEGMENT = with_state(segment_state, (*QKV[1:], S), log_decay=-positive(2, 9, 4))
UNFUSED = plain(unfused, GRID)
#: One for each operator that has kernels of its own.
OPERATORS = {
    "attention": ATTENTION,
    "neighborhood": NEIGHBORHOOD,
    "linear": LINEAR,
    "segment_state": SEGMENT,
    "unfused": UNFUSED,
}
PROBLEMS = OPERATORS | {
    "alibi and sink tokens": of(
        attention, QKV, window=(2, 1), sink_tokens=1, alibi_slopes=positive(4), return_lse=True
    ),
    "sinks": of(attention, (*QKV, (4,)), "sinks", scale=0.5, return_lse=True),
    "empty rows": of(lambda q, k, v, **o: attention(q, k[:, :4], v[:, :4], causal=True, **o), QKV),
    "packed": of(attention, PACKED, cu_seqlens_q=SEQLENS, cu_seqlens_k=SEQLENS, causal=True),
    "constant bias": of(attention, QKV, bias=positive(2, 4, 9, 9)),
    "v alone": of_v(attention, softcap=2.0, return_lse=True),
    "causal strides": of(neighborhood_attention, QKV, window=4, causal=True, stride=2),
    "extra keys": of(
        neighborhood_attention,
        (*GRID, (2, 3, 2, 16), (2, 3, 2, 24)),
        "extra_keys",
        "extra_values",
        window=3,
        return_lse=True,
    ),
    "halo": of(tileattn.halo_attention, GRID, block=2, halo=1, border="zeros"),
    "windowed": of(tileattn.windowed_attention, GRID, window=3, shift=1),
    "merge": plain(merged, (QKV[2], QKV[2], (2, 9, 2), (2, 9, 2))),
    "linear, bidirectional": of(linear_attention, QKV, causal=False),
    "linear, packed": of(
        linear_attention, tuple((1, *shape) for shape in PACKED), cu_seqlens=SEQLENS
    ),
    "linear, normalized": with_state(
        linear_attention,
        (*QKV, S, Z),
        log_decay=-positive(2, 9, 4),
        normalize=True,
        feature_map="elu1",
    ),
    "linear, taylor2": of(
        linear_attention, QKV, normalize=True, feature_map=tileattn.feature_maps.taylor2
    ),
    "linear, v alone": of_v(linear_attention, feature_map="taylor2", return_final_state=True),
    "segment_state, normalized": with_state(
        segment_state, (*QKV[1:], S, Z), log_decay=-positive(4), normalize=True
    ),
    "prefix": of(tileattn.prefix_linear_attention, (*QKV, *QKV[1:]), feature_map="elu1"),
    "clamped": of(tileattn.clamped_linear_attention, QKV, minimum=1.0),
    "agent": of(tileattn.agent_attention, (*SAME, (2, 3, 2, 16))),
    "softmax_rnn": of(tileattn.softmax_rnn_attention, QKV, finalizer="count"),
    "wersa": of(tileattn.wersa_attention, (*SAME, (3,), (16, 24))),
    "local linear": plain(tileattn.local_linear_attention, QKV, ridge=1.0),
    "parallax": plain(tileattn.parallax_attention, (QKV[0], *QKV)),
    "nn.Attention": of_module(tileattn.nn.Attention(32, 2, learn_sinks=True), 2, 9, 32),
    "nn.Lightning": of_module(tileattn.nn.LightningAttention(32, 2), 2, 9, 32),
    "nn.Neighborhood": of_module(
        tileattn.nn.NeighborhoodAttention2d(32, 2, window=3, relative_bias=True), 2, 4, 5, 32
    ),
}


def inputs(problem: Problem, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Primals and tangents, rounded to ``dtype`` but for states and what is float32 anyway."""
    generator = torch.Generator().manual_seed(0)

    def made() -> tuple[Tensor, ...]:
        return tuple(torch.randn(*shape, generator=generator).to(dtype) for shape in problem[1])

    return made(), made()


def leaves(results: Any) -> list[Tensor]:
    return list(pytree.tree_leaves(results))


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


def test_second_derivatives() -> None:
    """The unfused pair has all of them, linear attention those of its tangents."""
    q, k = (torch.rand(1, 5, 2, 8, dtype=torch.float64) for _ in range(2))

    def unfused_loss(q: Tensor) -> Tensor:
        return tileattn.neighborhood_qk(q, k, window=3).square().sum()

    expected = torch.autograd.functional.hessian(unfused_loss, q)
    for jacobian in (torch.func.jacfwd, torch.func.jacrev):
        for gradient in (torch.func.jacfwd, torch.func.grad):
            torch.testing.assert_close(jacobian(gradient(unfused_loss))(q), expected)

    def second(dtype: torch.dtype, backend: str) -> Tensor:
        x, v = q.to(dtype), k.to(dtype)
        inner = jvp_of(lambda x: linear_attention(x, x, v, backend=backend).square().sum(), x)
        return jvp_of(inner, x)(x).double()

    expected = second(torch.float64, "reference")
    torch.testing.assert_close(second(torch.float32, "cpu"), expected, rtol=1e-5, atol=1e-5)


def jvp_of(f: Callable[[Tensor], Tensor], tangent: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.func.jvp(f, (x,), (tangent,))[1]
