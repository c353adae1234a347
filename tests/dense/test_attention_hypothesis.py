"""Random shapes and options: the kernels against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, check
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import Simulator


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    side = st.one_of(st.none(), st.integers(0, 80))
    return {
        "causal": draw(st.booleans()),
        "window": draw(st.one_of(st.none(), st.tuples(side, side))),
        "sink_tokens": draw(st.sampled_from([0, 0, 1, 5, 70])),
        "softcap": draw(st.sampled_from([0.0, 0.0, 3.0])),
        "scale": draw(st.sampled_from([None, 0.2])),
        "deterministic": draw(st.booleans()),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    heads_kv = draw(st.integers(1, 3))
    common: dict[str, Any] = {
        "heads_kv": heads_kv,
        "heads": heads_kv * draw(st.integers(1, 3)),
        "dim": 8 * draw(st.integers(1, 9)),
        "dim_v": 8 * draw(st.integers(1, 9)),
        "alibi": draw(st.sampled_from(["", "", "h", "bh"])),
        "sinks": draw(st.booleans()),
        "options": draw(options()),
    }
    if draw(st.integers(0, 3)) == 0:
        length = st.integers(0, 90)
        seqlens = draw(st.lists(st.tuples(length, length), min_size=1, max_size=4))
        tail = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
        return Case(seqlens=tuple(seqlens), tail=tail, **common)
    return Case(
        batch=draw(st.integers(0, 3)),
        len_q=draw(st.integers(0, 200)),
        len_k=draw(st.integers(0, 200)),
        bias=draw(st.sampled_from(["", "", "-", "b", "q", "h", "bhq"])),
        **common,
    )


@given(case=cases(), seed=st.integers(0, 3))
@settings(max_examples=40)
def test_random_cases(case: Case, seed: int, dtype: torch.dtype, torch_device: str) -> None:
    check(case, dtype, torch_device, seed=seed)


@pytest.mark.parametrize("capability", [80, 90])
@given(case=cases())
@settings(max_examples=8)
def test_random_cases_simulated(case: Case, capability: int, simulator: Simulator) -> None:
    with simulator.kernels(), simulator.configured(capability=capability):
        check(case, torch.float16, "cpu")
