"""Numbers, flags and sequences of every public function and module, in Python's and numpy's kinds.

``CALLS`` gives each of them a value that works. The kind of a value is told from its type: each
other way to write it gives the same result, each wrong one an error that names the argument.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_nn_state import classes
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tileattn
from tileattn import decays, feature_maps, planner

ZERO = torch.zeros
Arguments = dict[str, Any]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


QKV: Arguments = dict(q=normal(2, 6, 4, 8), k=normal(2, 6, 2, 8), v=normal(2, 6, 2, 8))
SAME: Arguments = {name: normal(2, 6, 2, 8) for name in "qkv"}
GRID: Arguments = dict(q=normal(1, 6, 7, 4, 8), k=normal(1, 6, 7, 2, 8), v=normal(1, 6, 7, 2, 8))
QK = {name: GRID[name] for name in "qk"}
TOKEN: Arguments = {name: normal(2, 2, 8) for name in "qkv"}
SPEC: Arguments = dict(window=3, stride=2, dilation=2, causal=(True, False))
SPECS: Arguments = dict(window=(3, 2), stride=(2, 1), dilation=(1, 2), causal=True)
ROWS: Arguments = dict(causal=True, window=(3, 0), sink_tokens=1, scale=0.5, softcap=2.0)
FLAGS: Arguments = dict(deterministic=False, return_lse=True)
SIZES: Arguments = dict(embed_dim=32, num_heads=4)

#: function or class -> ways to call it
CALLS: dict[Callable[..., Any], list[Arguments]] = {
    tileattn.attention: [
        QKV | ROWS | FLAGS | dict(backend="cpu"),
        QKV | ROWS | FLAGS | dict(backend="reference"),
    ],
    tileattn.neighborhood_attention: [
        GRID | SPEC | FLAGS | dict(scale=0.5),
        GRID | SPECS | FLAGS | dict(scale=0.5, backend="reference"),
    ],
    tileattn.halo_attention: [
        GRID | dict(block=3, halo=(1, 0), scale=0.5, deterministic=False),
        GRID | dict(block=(2, 4), halo=1, border="zeros"),
    ],
    tileattn.windowed_attention: [
        GRID | dict(window=3, shift=(0, 2), scale=0.5, deterministic=True),
        GRID | dict(window=(3, 2), shift=1),
    ],
    tileattn.neighborhood_qk: [QK | SPEC | dict(scale=0.5), QK | SPECS],
    tileattn.neighborhood_av: [
        dict(weights=normal(1, 6, 7, 4, 9), v=GRID["v"]) | SPEC,
        dict(weights=normal(1, 6, 7, 4, 6), v=GRID["v"]) | SPECS,
    ],
    tileattn.linear_attention: [
        QKV | dict(normalize=False, causal=True, scale=0.5, return_final_state=True),
        QKV | dict(normalize=True, causal=False, feature_map="relu", backend="reference"),
    ],
    tileattn.segment_state: [dict(k=QKV["k"], v=QKV["v"], normalize=True)],
    tileattn.linear_attention_step: [TOKEN | dict(state=ZERO(2, 2, 8, 8), scale=0.5)],
    tileattn.prefix_linear_attention: [
        QKV
        | dict(prefix_k=normal(2, 3, 2, 8), prefix_v=normal(2, 3, 2, 8))
        | dict(normalize=True, feature_map="relu", scale=0.5)
    ],
    tileattn.clamped_linear_attention: [QKV | dict(minimum=2.0)],
    tileattn.agent_attention: [SAME | dict(agents=normal(2, 3, 2, 8), scale=0.5)],
    tileattn.softmax_rnn_attention: [
        QKV | dict(causal=True, scale=0.5, eps=0.25, finalizer="rms"),
        QKV | dict(causal=False, eps=0.25, finalizer="l2"),
    ],
    tileattn.local_linear_attention: [
        QKV | dict(ridge=2.0, iterations=3, causal=True, scale=0.5),
    ],
    tileattn.parallax_attention: [QKV | dict(r=normal(2, 6, 4, 8), causal=True, scale=0.5)],
    tileattn.wersa_attention: [
        SAME | dict(gains=torch.ones(3), projection=normal(8, 5), bandwidth=2.0)
    ],
    feature_maps.hedgehog: [dict(x=normal(3, 2, 8), weight=normal(2, 8, 4), eps=0.25)],
    feature_maps.relu_random: [dict(x=normal(3, 8), projection=normal(8, 4), bandwidth=2.0)],
    decays.transnormer: [dict(heads=4, layer=1, num_layers=3)],
    decays.lightning: [dict(heads=4, layer=1, num_layers=3)],
    decays.retention: [dict(heads=4)],
    planner.flop_bound: [dict(grid=(6, 7)) | SPEC, dict(grid=(6, 7)) | SPECS],
    planner.count_tiles: [dict(grid=(6, 7), query_tile=(2, 4), key_tile=(4, 2)) | SPEC],
    planner.rank_tiles: [dict(grid=(6, 7), queries=8, keys=16) | SPECS],
}
#: name of a module -> ways to build it, and shapes of what it is called with
MODULES: dict[str, tuple[Arguments, list[tuple[int, ...]]]] = {
    "AgentAttention": (SIZES | dict(image=(4, 5), agents=2), [(2, 4, 5, 32)]),
    "Attention": (
        SIZES | ROWS | dict(num_kv_heads=2, head_dim=16, bias=False, learn_sinks=True),
        [(2, 6, 32)],
    ),
    "ClampedLinearAttention": (SIZES | dict(minimum=2.0), [(2, 6, 32)]),
    "HedgehogFeatureMap": (
        dict(num_heads=4, head_dim=8, features=4, joint=True),
        [(2, 6, 4, 8)],
    ),
    "LightningAttention": (SIZES | dict(head_dim=16, layer=1, num_layers=3), [(2, 6, 32)]),
    "LocalLinearAttention": (SIZES | dict(ridge=2.0, iterations=3, causal=False), [(2, 6, 32)]),
    "ParallaxAttention": (SIZES | dict(causal=False), [(2, 6, 32)]),
    "PrefixLinearAttention": (SIZES, [(2, 6, 32), (2, 3, 32)]),
    "RandomReluFeatureMap": (dict(head_dim=8, features=4, bandwidth=2.0), [(2, 6, 8)]),
    "SoftmaxRnnAttention": (SIZES | dict(causal=False), [(2, 6, 32)]),
    "WersaAttention": (SIZES | dict(levels=2, features=8), [(2, 6, 32)]),
}
OPTIONS = dict(num_kv_heads=2, bias=False, relative_bias=False, scale=0.5, dropout=0.0)
for rank, grid in ((1, (9,)), (2, (6, 7)), (3, (4, 5, 6))):
    spec = dict(window=(3,) * rank, stride=2, dilation=1, causal=(True,) * rank)
    MODULES[f"NeighborhoodAttention{rank}d"] = (SIZES | OPTIONS | spec, [(1, *grid, 32)])

#: not plain: tensors, functions, names, and what torch itself checks
OTHER = {
    *("q", "k", "v", "r", "x", "weight", "weights", "agents", "gains", "projection", "temperature"),
    *("prefix_k", "prefix_v", "extra_keys", "extra_values", "outs", "lses", "state", "slots"),
    *("gather_bias", "spread_bias", "alibi_slopes", "sinks", "cu_seqlens", "log_decay"),
    *("cu_seqlens_q", "cu_seqlens_k", "initial_state", "feature_map", "border", "finalizer"),
    *("backend", "device", "dtype", "generator", "bias", "name", "value"),
}


#: numbers that may be tensors, with a gradient
LEARNED = {(feature_maps.relu_random, "bandwidth"), (tileattn.wersa_attention, "bandwidth")}


def _cases() -> Iterator[Any]:
    for function, calls in CALLS.items():
        for number, arguments in enumerate(calls):
            for name, value in arguments.items():
                if not isinstance(value, Tensor | str):
                    label = f"{function.__name__}-{number}-{name}"
                    yield pytest.param(function, arguments, name, id=label)
    for module in classes(tileattn.nn):
        arguments, shapes = MODULES[module.__name__]
        for name in arguments:

            def built(
                module: type[nn.Module] = module, shapes: Any = shapes, **options: Any
            ) -> Any:
                torch.manual_seed(0)
                made = module(**options)
                assert_no_numpy(made)
                return made(*(normal(*shape) for shape in shapes))

            yield pytest.param(built, arguments, name, id=f"{module.__name__}-{name}")


every_argument = pytest.mark.parametrize(("function", "arguments", "name"), list(_cases()))


def assert_no_numpy(module: nn.Module) -> None:
    """torch.compile would trace them as tensors."""
    for part in module.modules():
        for name, value in vars(part).items():
            for leaf in tree_leaves(value):
                assert not isinstance(leaf, np.generic | np.ndarray), name


def spellings(value: Any) -> list[Any]:
    """Other ways to write the same value."""
    if isinstance(value, tuple):
        scalars = tuple(np.array(entry)[()] for entry in value)
        return [list(value), np.array(value), scalars, [np.array(entry) for entry in value]]
    if isinstance(value, bool):
        return [np.bool_(value), np.array(value)]
    if isinstance(value, int):
        return [np.int64(value), np.uint8(value), np.array(value), np.array(value, np.int32)]
    return [
        np.float32(value),
        np.float64(value),
        np.array(value),
        np.float16(value),
        np.longdouble(value),
    ]


def mistakes(value: Any) -> list[Any]:
    """What cannot be meant, or would have to be fetched from a device."""
    texts = ["1", b"1", 1j, object(), {}]
    if isinstance(value, tuple):
        single = mistakes(value[0])[len(texts) :]
        inner = [(wrong, *value[1:]) for wrong in single if not isinstance(wrong, list)]
        return [*texts, *inner, torch.tensor([int(n) for n in value]), value * 3]
    if isinstance(value, bool):
        return [*texts, 1, 0.0, np.int64(1), np.str_("yes"), torch.tensor(value)]
    if isinstance(value, int):
        kinds = [True, np.bool_(True), float(value), np.float32(value), torch.tensor(value)]
        return [*texts, *kinds, -1, np.int64(-1)]
    kinds = [True, np.bool_(True), torch.tensor(value), torch.full((), value, requires_grad=True)]
    return [*texts, *kinds, np.float32("nan"), np.float64("inf"), np.array([value, value])]


def call(function: Callable[..., Any], arguments: Arguments) -> list[Any]:
    return tree_leaves(function(**copy.deepcopy(arguments)))


@every_argument
def test_every_spelling_means_the_same(
    function: Callable[..., Any], arguments: Arguments, name: str
) -> None:
    expected = call(function, arguments)
    for spelling in spellings(arguments[name]):
        found = call(function, arguments | {name: spelling})
        for one, other in zip(found, expected, strict=True):
            same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
            assert same, repr(spelling)


@every_argument
def test_mistakes_are_named(function: Callable[..., Any], arguments: Arguments, name: str) -> None:
    for mistake in mistakes(arguments[name]):
        if isinstance(mistake, Tensor) and (function, name) in LEARNED:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            call(function, arguments | {name: mistake})
        assert str(caught.value).startswith((f"{name} ", f"{name}: ")), str(caught.value)
        if isinstance(mistake, Tensor):
            assert "pass .tolist()" in str(caught.value)


def _is_of(module: Any, found: Any) -> bool:
    return getattr(found, "__module__", "") == module.__name__ and found.__name__[0] != "_"


def test_every_argument_is_classified() -> None:
    """A new function, module or argument stands in the tables, or is named as of no plain kind."""
    public = [getattr(tileattn, name) for name in tileattn.__all__]
    for module in (decays, planner, feature_maps):
        public += [found for found in vars(module).values() if _is_of(module, found)]
    functions = [found for found in public if inspect.isfunction(found)]
    tables = {function: CALLS.get(function, []) for function in functions}
    tables |= {module: [MODULES[module.__name__][0]] for module in classes(tileattn.nn)}
    missing = [
        (function.__name__, name)
        for function, calls in tables.items()
        for name in inspect.signature(function).parameters
        if name not in OTHER and not any(name in arguments for arguments in calls)
    ]
    assert missing == []


def test_numpy_in_a_compiled_function() -> None:
    """Traced as a tensor there: told, or, where the graph may break, called outside of it."""

    def run(q: Tensor, scale: Any) -> Tensor:
        return tileattn.attention(q, q, q, scale=scale)

    q, scale = normal(1, 6, 2, 8), np.float32(0.5)
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="numpy.*pass Python's"):
        torch.compile(run, fullgraph=True, backend="eager")(q, scale)
    torch.compiler.reset()
    assert torch.equal(torch.compile(run, backend="eager")(q, scale), run(q, 0.5))


def test_flag_from_a_comparison_of_sizes() -> None:
    """A causal flag that depends on a dynamic length, in eager, compiled and exported code."""

    class Model(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return tileattn.attention(q, q, q, causal=q.shape[1] > 1)

    q = normal(2, 6, 2, 8)
    expected = tileattn.attention(q, q, q, causal=True)
    torch.compiler.reset()
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(q), expected)
    dynamic = ({1: torch.export.Dim("tokens", min=2, max=64)},)
    exported = torch.export.export(Model(), (q,), dynamic_shapes=dynamic, strict=False)
    assert torch.equal(exported.module()(q), expected)


def test_slopes_that_are_a_parameter() -> None:
    """Refused where their gradient would be missing, taken where none is asked for."""
    slopes = nn.Parameter(torch.full((4,), 0.5))
    for backend in ("cpu", "reference"):
        expected = tileattn.attention(**QKV, alibi_slopes=slopes.detach(), backend=backend)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                out = tileattn.attention(**QKV, alibi_slopes=slopes, backend=backend)
            assert torch.equal(out, expected)
        with pytest.raises(ValueError, match="alibi_slopes requires a gradient.*detach"):
            tileattn.attention(**QKV, alibi_slopes=slopes, backend=backend)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"causal": True}, {"causal": 1}),
        ({"softcap": 1.0}, {"softcap": True}),
        ({"window": (1, 0)}, {"window": (1.0, 0)}),
        ({"window": (1, 0)}, {"window": (True, False)}),
        ({"sink_tokens": 1}, {"sink_tokens": True}),
    ],
)
def test_equal_arguments_of_other_types(good: dict[str, Any], bad: dict[str, Any]) -> None:
    """A call that was fine does not excuse one whose arguments are equal but not allowed."""
    for _ in range(2):
        tileattn.attention(**QKV, **good)
        with pytest.raises(TypeError):
            tileattn.attention(**QKV, **bad)


def test_calls_of_one_kind_are_checked_each() -> None:
    """What was found of a call holds for tensors of that kind only."""
    q, k, v = QKV["q"], QKV["k"], QKV["v"]
    for _ in range(2):
        out = tileattn.attention(q, k, v)
        for bad in (k[:, :, :1].double(), k[:1], k[..., :4], k.to("meta")):
            with pytest.raises((TypeError, ValueError)):
                tileattn.attention(q, bad, v)
        with pytest.raises(ValueError, match="backend"):
            tileattn.attention(q, k, v, backend="cuda")
        assert torch.equal(tileattn.attention(q, k, v), out)
