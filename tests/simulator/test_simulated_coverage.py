"""Every CUDA kernel that was built runs in the PTX simulator, and computes the right thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import pytest
import torch
from cases import Case, check
from grid_cases import GridCase, check_grid
from linear_cases import Case as LinearCase
from linear_cases import check as check_linear
from simulator import Simulator, built_dims

from tileattn import linear_attention_step

ELEMENTS = {torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
# Two tiles and a border on either side, in most kernels.
SHORT = {"batch": 1, "len_q": 67, "len_k": 90, "heads": 1, "heads_kv": 1}
PATTERNS = ({}, {"causal": True}, {"window": (20, 5)})
# Both orders of sums, and on Hopper kernels with and without modifiers.
VARIANTS = ({}, {"softcap": 5.0, "deterministic": True})

Calls = Iterator[Callable[[torch.dtype], object]]


def _of_sequences(dims: list[int], with_grad: bool) -> Calls:
    cases = [Case(batch=1, len_q=3, len_k=700, dim=32)]  # keys are split
    for dim in dims:
        cases += [Case(**SHORT, dim=dim, options=p | v) for p in PATTERNS for v in VARIANTS]
    for case in cases:
        yield lambda dtype, case=case: check(case, dtype, "cpu", with_grad=with_grad)


def _on_grids(dims: list[int]) -> Calls:
    for dim in dims:
        for deterministic in (False, True):
            case = GridCase(
                (9, 11),
                {"window": 5, "deterministic": deterministic},
                batch=1,
                heads=1,
                heads_kv=1,
                dim=dim,
                extra=3,
            )
            yield lambda dtype, case=case: check_grid(case, dtype, "cpu")


def _with_states() -> Calls:
    shapes = [(dim, dim, {}) for dim in built_dims("linear")]
    for dim, dim_v, options in (*shapes, (16, 40, {"feature_map": "taylor2"})):
        for length in (65, 401):  # in one go, and in segments
            case = LinearCase(
                batch=1,
                len=length,
                heads=2,
                heads_kv=1,
                dim=dim,
                dim_v=dim_v,
                decay="bth",
                options=options | {"normalize": True},
            )
            yield lambda dtype, case=case: check_linear(case, dtype)
    yield _decode


def _decode(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 64, generator=generator).to(dtype) for _ in range(3))
    states = [torch.zeros(3, 2, 64, 64) for _ in range(2)]
    out = linear_attention_step(q, k, v, states[0])
    expected = linear_attention_step(q, k, v, states[1], backend="reference")
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*states)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=ELEMENTS.values())
def test_every_kernel_runs(dtype: torch.dtype, simulator: Simulator) -> None:
    """Capability 86 has little shared memory and backward kernels of its own."""
    with simulator.kernels(), simulator.configured(stats="collect", multiprocessors=16):
        simulator.counters()
        for capability in (80, 86, 90):
            with simulator.configured(capability=capability):
                forward = built_dims("forward", capability)
                backward = built_dims("backward", capability) if capability < 90 else []
                grids = built_dims("neighborhood_backward", capability) if backward else []
                for call in chain(
                    _of_sequences(backward, True),
                    _of_sequences([dim for dim in forward if dim not in backward], False),
                    _on_grids(grids),
                ):
                    call(dtype)
        for call in _with_states():
            call(dtype)
        launched = {counters["kernel"] for counters in simulator.counters()}
    others = set(ELEMENTS.values()) - {ELEMENTS[dtype]}
    built = {name for name in simulator.kernel_names() if not any(o in name for o in others)}
    assert built - launched == set()
