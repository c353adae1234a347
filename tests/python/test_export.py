"""torch.export with plain ``Dim``s: every public function and module, run at other sizes.

Letters in shapes are sizes that stay open in the exported program: B a batch, S and K tokens of
queries and keys, T of something else, X, Y and Z the axes of a grid, N sequences.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_nn_state import INPUTS, Build, every_module
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils import _pytree as pytree

import tileattn
from tileattn import attention, linear_attention, neighborhood_attention

Shape = tuple[str | int, ...]
Sizes = dict[str, int]
Problem = tuple[Callable[..., Any], tuple[Shape, ...]]

#: One to export at, and others to run at: longer than a block of queries, and as short as allowed.
TRACED: Sizes = {"B": 3, "S": 9, "K": 12, "T": 5, "X": 7, "Y": 6, "Z": 5, "N": 3}
OTHERS: list[Sizes] = [
    {"B": 5, "S": 300, "K": 270, "T": 140, "X": 9, "Y": 11, "Z": 6, "N": 2},
    {"B": 1, "S": 1, "K": 1, "T": 1, "X": 4, "Y": 4, "Z": 4, "N": 1},
]


def tokens(keys: str = "S") -> tuple[Shape, ...]:
    return ("B", "S", 4, 16), ("B", keys, 2, 16), ("B", keys, 2, 24)


def grid(axes: str) -> tuple[Shape, ...]:
    return ("B", *axes, 4, 16), ("B", *axes, 2, 16), ("B", *axes, 2, 24)


SAME: tuple[Shape, ...] = (("B", "S", 2, 16),) * 3
DECAY = -torch.rand(4, generator=torch.Generator().manual_seed(1))


def named(function: Callable[..., Any], *names: str, **options: Any) -> Callable[..., Any]:
    """The last tensors are the keywords ``names``."""

    def call(*tensors: Tensor) -> Any:
        first = len(tensors) - len(names)
        return function(
            *tensors[:first], **dict(zip(names, tensors[first:], strict=True)), **options
        )

    return call


def packed(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The last tensor is as long as there are sequences; they divide the tokens evenly."""

    def call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Any:
        each = k.shape[-3] // lengths.shape[0]
        offsets = torch.arange(lengths.shape[0] + 1, dtype=torch.int32) * each
        return function(q, k, v, **dict.fromkeys(names, offsets), causal=True)

    return call


def merged(a: Tensor, b: Tensor, lse_a: Tensor, lse_b: Tensor) -> Any:
    return tileattn.merge_attention([a, b], [lse_a, lse_b])


def decayed(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> Any:
    return linear_attention(
        q, k, v, log_decay=-decay.abs(), initial_state=state, return_final_state=True
    )


def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Any:
    state = state.clone()
    return tileattn.linear_attention_step(q, k, v, state, log_decay=DECAY), state


UNFUSED: dict[str, Any] = {"window": (3, 2), "stride": (2, 1), "causal": (True, False)}
WINDOWED = partial(
    attention, causal=True, window=(4, 0), sink_tokens=1, softcap=5.0, return_lse=True
)

PROBLEMS: dict[str, Problem] = {
    "attention": (WINDOWED, tokens()),
    "attention-cross": (attention, tokens("K")),
    "attention-half of the length": (
        lambda q, k, v: attention(q, k, v, window=(q.shape[1] // 2, 0)),
        tokens(),
    ),
    "attention-reference": (partial(WINDOWED, backend="reference"), tokens()),
    "attention-bias": (named(attention, "bias"), (*tokens("K"), ("B", 4, "S", "K"))),
    "attention-row bias": (named(attention, "bias"), (*tokens("K"), (1, 4, 1, "K"))),
    "attention-alibi": (
        named(attention, "sinks", "alibi_slopes"),
        (*tokens(), (4,), ("B", 4)),
    ),
    "attention-packed": (
        packed(attention, "cu_seqlens_q", "cu_seqlens_k"),
        (*(shape[1:] for shape in tokens()), ("N",)),
    ),
    "merge_attention": (merged, (*[("B", "S", 4, 16)] * 2, *[("B", "S", 4)] * 2)),
    "neighborhood_attention-1d": (
        partial(neighborhood_attention, window=4, stride=2, return_lse=True),
        grid("X"),
    ),
    "neighborhood_attention-dilated": (
        partial(neighborhood_attention, window=2, dilation=2, causal=True),
        grid("X"),
    ),
    "neighborhood_attention-2d": (partial(neighborhood_attention, window=(3, 4)), grid("XY")),
    "neighborhood_attention-3d": (partial(neighborhood_attention, window=3), grid("XYZ")),
    "neighborhood_attention-extra": (
        named(neighborhood_attention, "extra_keys", "extra_values", window=3),
        (*grid("XY"), ("B", "N", 2, 16), ("B", "N", 2, 24)),
    ),
    "halo_attention": (
        partial(tileattn.halo_attention, block=3, halo=1, border="zeros"),
        grid("XY"),
    ),
    "windowed_attention": (partial(tileattn.windowed_attention, window=3, shift=1), grid("XY")),
    "neighborhood_qk": (partial(tileattn.neighborhood_qk, **UNFUSED), grid("XY")[:2]),
    "neighborhood_av": (
        partial(tileattn.neighborhood_av, **UNFUSED),
        (("B", "X", "Y", 4, 6), ("B", "X", "Y", 2, 24)),
    ),
    "linear_attention": (partial(linear_attention, causal=False), tokens()),
    "linear_attention-decay": (decayed, (*tokens(), ("B", "S", 4), ("B", 4, 16, 24))),
    "linear_attention-taylor2": (
        partial(linear_attention, normalize=True, feature_map="taylor2", log_decay=DECAY),
        tokens(),
    ),
    "linear_attention-packed": (
        packed(linear_attention, "cu_seqlens"),
        (*((1, *shape[1:]) for shape in tokens()), ("N",)),
    ),
    "segment_state": (
        partial(tileattn.segment_state, normalize=True, feature_map="relu"),
        tokens()[1:],
    ),
    "linear_attention_step": (
        step,
        (("B", 4, 16), ("B", 2, 16), ("B", 2, 24), ("B", 4, 16, 24)),
    ),
    "prefix_linear_attention": (
        partial(tileattn.prefix_linear_attention, feature_map="elu1"),
        (*tokens(), ("B", "T", 2, 16), ("B", "T", 2, 24)),
    ),
    "clamped_linear_attention": (partial(tileattn.clamped_linear_attention, minimum=1.0), tokens()),
    "agent_attention": (tileattn.agent_attention, (*SAME, ("B", "T", 2, 16))),
    "local_linear_attention": (tileattn.local_linear_attention, tokens()),
    "local_linear_attention-cross": (
        partial(tileattn.local_linear_attention, causal=False),
        tokens("K"),
    ),
    "parallax_attention": (tileattn.parallax_attention, (tokens()[0], *tokens())),
    "haar_filter": (tileattn.haar_filter, (("B", "S", 2, 16), (5,))),
    "wersa_attention": (tileattn.wersa_attention, (*SAME, ("B", 3, 2), (16, 24))),
}
for finalizer in ("sum", "count", "l2", "rms"):
    PROBLEMS[f"softmax_rnn_attention-{finalizer}"] = (
        partial(tileattn.softmax_rnn_attention, finalizer=finalizer),
        tokens(),
    )


def test_every_function_is_here() -> None:
    public = {
        name
        for name, value in vars(tileattn).items()
        if name in tileattn.__all__ and inspect.isfunction(value)
    }
    assert public - {"cmake_prefix", "use_backend"} == {name.split("-")[0] for name in PROBLEMS}


class Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def tensors(shapes: tuple[Shape, ...], sizes: Sizes) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(*(sizes.get(str(n), n) for n in shape), generator=generator)  # type: ignore[misc]
        for shape in shapes
    )


def assert_exports(
    module: nn.Module, shapes: tuple[Shape, ...], grouped: bool, strict: bool
) -> None:
    """grouped: forward takes *tensors."""
    dims = tuple(
        {axis: Dim(n) for axis, n in enumerate(shape) if isinstance(n, str)} for shape in shapes
    )
    traced = tensors(shapes, TRACED)
    program = export(
        module, traced, dynamic_shapes=(dims,) if grouped else dims, strict=strict
    ).module()
    for sizes in (TRACED, *OTHERS):
        given = tensors(shapes, sizes)
        results = zip(*(pytree.tree_leaves(run(*given)) for run in (program, module)), strict=True)
        for actual, expected in results:
            torch.testing.assert_close(actual, expected, msg=lambda text, s=sizes: f"{s}: {text}")


@pytest.mark.parametrize("name", PROBLEMS)
def test_functions(name: str) -> None:
    function, shapes = PROBLEMS[name]
    assert_exports(Module(function), shapes, grouped=True, strict=False)


STRICT = ("attention", "neighborhood_attention-2d", "neighborhood_qk", "parallax_attention")


@pytest.mark.parametrize("name", [*STRICT, "wersa_attention", "linear_attention-decay"])
def test_functions_traced_by_dynamo(name: str) -> None:
    function, shapes = PROBLEMS[name]
    assert_exports(Module(function), shapes, grouped=True, strict=True)


@every_module
def test_modules(build: Build) -> None:
    """Batches, lengths and axes of grids are open; an image and channels are not."""
    torch.manual_seed(0)
    module = build()
    kind = type(module).__name__
    fixed = {"AgentAttention": 3, "HedgehogFeatureMap": 2}.get(kind, 1)
    rank_of_grid = "Neighborhood" in kind
    shapes = []
    for shape, letter in zip(INPUTS.get(kind, [(2, 11, 32)]), "ST", strict=False):
        letters = "XYZ" if rank_of_grid else letter
        open_axes = ("B", *itertools.islice(letters, len(shape) - 1 - fixed))
        shapes.append((*open_axes, *shape[len(open_axes) :]))
    assert_exports(module, tuple(shapes), grouped=False, strict=False)


def test_a_window_beyond_a_smaller_axis_is_refused() -> None:
    """What no bound of the exported program says, its operators say."""
    for name in ("neighborhood_attention-2d", "neighborhood_qk"):
        function, shapes = PROBLEMS[name]
        dims = tuple({0: Dim("B"), 1: Dim("X"), 2: Dim("Y")} for _ in shapes)
        program = export(Module(function), tensors(shapes, TRACED), dynamic_shapes=(dims,)).module()
        with pytest.raises((RuntimeError, ValueError), match="window"):
            program(*tensors(shapes, TRACED | {"X": 2}))


def test_the_reference_bounds_an_axis_by_its_window() -> None:
    function = partial(neighborhood_attention, window=(3, 4), backend="reference")
    dims = tuple({0: Dim("B"), 1: Dim("X"), 2: Dim("Y", min=4)} for _ in grid("XY"))
    with pytest.raises(Exception, match=r"X = Dim\('X', min=3\)"):
        export(Module(function), tensors(grid("XY"), TRACED), dynamic_shapes=(dims,))
