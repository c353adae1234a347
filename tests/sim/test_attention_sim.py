"""The CUDA kernels, run by the PTX simulator, against the reference: small sizes, all features.

The public ``tileattn.attention`` is called with CPU tensors; see simulator.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # cases.py, tolerance.py
from cases import Case, Tensors, compare, run
from simulator import VARIABLES, Simulator

from tileattn import attention

MISSING = [name for name in VARIABLES if not os.environ.get(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no PTX simulator: {', '.join(MISSING)} not set (see simulator.py)"
)

# More than one tile of queries and of keys in every kernel, and no tile divides them.
LONG = {"batch": 1, "len_q": 131, "len_k": 203, "heads": 2, "heads_kv": 1, "dim": 64}
HALF, BFLOAT = torch.float16, torch.bfloat16


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture(autouse=True)
def _on_simulator(simulator: Simulator) -> Iterator[None]:
    """Every test runs the kernels there, and fails if none was launched."""
    before = simulator.launches
    with simulator.kernels():
        yield
    assert simulator.launches > before, "the CUDA kernels were not reached"


def check(case: Case, dtype: torch.dtype, seed: int = 0) -> Tensors:
    """out and lse of the kernel against the reference."""
    tensors = case.tensors(dtype, "cpu", seed)
    actual = run(attention, tensors, case.options, None)
    compare(tensors, case.options, actual, with_grad=False)
    return actual


CASES = {
    "full": Case(**LONG),
    "one_tile": Case(batch=1, len_q=16, len_k=16, dim=64),
    "grouped_heads": Case(len_q=70, len_k=90, heads=6, heads_kv=2, dim=64),
    "causal": Case(**LONG, options={"causal": True}),
    "causal_more_queries": Case(**LONG | {"len_k": 70}, options={"causal": True}),
    "window": Case(**LONG, options={"window": (17, 5)}),
    "window_right_only": Case(**LONG, options={"window": (None, 9)}),
    "window_sinks_causal": Case(
        **LONG, options={"window": (20, 0), "sink_tokens": 70, "causal": True}
    ),
    "window_empty_rows": Case(**LONG | {"len_k": 20}, options={"window": (5, 0)}),
    "negative_scale": Case(**LONG, options={"scale": -0.3}),
    "large_scores": Case(**LONG, options={"scale": 10.0}),
    "softcap": Case(**LONG, options={"softcap": 2.0, "scale": 0.5}),
    "alibi": Case(**LONG | {"batch": 2}, alibi="bh", options={"causal": True}),
    "bias": Case(**LONG | {"batch": 2}, bias="bhq"),
    "bias_per_key_f32": Case(**LONG, bias="-", bias_dtype=torch.float32),
    "sinks_empty_rows": Case(**LONG | {"len_k": 20}, sinks=True, options={"causal": True}),
    "everything": Case(
        **LONG,
        bias="hq",
        alibi="h",
        sinks=True,
        options={"softcap": 5.0, "causal": True, "window": (50, 0), "sink_tokens": 3},
    ),
    "no_keys": Case(batch=1, len_q=9, len_k=0, dim=64),
    "no_keys_sinks": Case(batch=1, len_q=9, len_k=0, dim=64, sinks=True),
    # One query block and many keys: the keys are split among blocks, then merged.
    "one_query": Case(batch=1, len_q=1, len_k=700, dim=64),
    "few_queries_causal": Case(batch=1, len_q=5, len_k=700, dim=64, options={"causal": True}),
    "one_query_sinks_window": Case(
        batch=1, len_q=1, len_k=700, dim=64, sinks=True, options={"window": (300, 0)}
    ),
    "one_query_empty_splits": Case(batch=1, len_q=3, len_k=700, dim=64, options={"window": (4, 0)}),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    check(CASES[name], HALF)


@pytest.mark.parametrize("name", ["full", "everything", "one_query"])
def test_bfloat16(name: str) -> None:
    check(CASES[name], BFLOAT)


@pytest.mark.parametrize(
    ("dim", "dim_v"),
    [
        (8, 8),
        (32, 32),
        (40, 64),
        (96, 72),
        (128, 128),
        (104, 128),
        (192, 136),
        (256, 256),
        (8, 256),
    ],
)
def test_head_dims(dim: int, dim_v: int) -> None:
    """One bucket after the other; the channels up to it are padding."""
    check(Case(**LONG | {"dim": dim}, dim_v=dim_v, options={"causal": True}), HALF)


PACKED = {
    "odd": Case(seqlens=((3, 17), (70, 5), (1, 90), (129, 65)), heads=2, heads_kv=1, dim=64),
    "empty_sequences": Case(seqlens=((0, 0), (12, 20), (0, 9), (7, 0), (30, 11), (0, 0)), dim=64),
    "tail": Case(seqlens=((20, 30), (9, 4)), tail=(11, 70), dim=64),
    "split": Case(seqlens=((1, 300), (0, 5), (2, 260)), heads=1, heads_kv=1, dim=64),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed(name: str, causal: bool) -> None:
    check(Case(**vars(PACKED[name]) | {"options": {"causal": causal}}), HALF)


def poisoned_borders(tensor: torch.Tensor) -> torch.Tensor:
    """A view into a larger buffer with NaN all around."""
    buffer = tensor.new_full([n + 8 for n in tensor.shape], torch.nan)
    inside = (*(slice(4, 4 + n) for n in tensor.shape[:-1]), slice(0, tensor.shape[-1]))
    buffer[inside] = tensor
    return buffer[inside]


@pytest.mark.parametrize("seqlens", [(), ((33, 50), (0, 4), (70, 21))], ids=["batched", "packed"])
def test_surroundings_do_not_matter(seqlens: tuple[tuple[int, int], ...]) -> None:
    case = Case(len_q=37, len_k=53, heads=2, dim=40, dim_v=24, seqlens=seqlens)
    tensors = case.tensors(HALF, "cpu")
    plain = check(case, HALF)
    inside = {n: poisoned_borders(t) if n in ("q", "k", "v") else t for n, t in tensors.items()}
    for name, value in run(attention, inside, {}, None).items():
        assert torch.equal(value, plain[name]), name


def test_offsets_outside_of_the_tokens_are_clamped(simulator: Simulator) -> None:
    """No value of cu_seqlens on the device can make a kernel read or write elsewhere.

    The simulator knows which memory belongs to the call and reports everything else.
    """
    tensors = Case(seqlens=((20, 20),), heads=1, heads_kv=1, dim=64).tensors(HALF, "cpu")
    offsets = torch.tensor([-5, 100, 7], dtype=torch.int32)
    rows = tensors["q"], tensors["k"], tensors["v"], None, None, None, offsets, offsets
    simulator.forward(*rows, 0.1, 0.0, -1, -1, 0, False, False)
