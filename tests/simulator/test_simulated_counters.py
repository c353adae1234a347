"""The CUDA kernels' counters in the PTX simulator: bank conflicts must not grow."""

from __future__ import annotations

import json

import pytest
from sim_report import (
    DIMS,
    HEADS,
    RECORD,
    RECORD_HINT,
    TOKENS,
    Measured,
    bank_conflicts,
    kernel_name,
    measure,
    regressions,
)
from simulator import Simulator


@pytest.fixture(scope="module")
def measured(simulator: Simulator) -> Measured:
    return measure(simulator)


def test_bank_conflicts_do_not_grow(measured: Measured) -> None:
    grown = regressions(bank_conflicts(measured), json.loads(RECORD.read_text()))
    assert not grown, "\n".join([*grown, f"If that is meant to be: {RECORD_HINT}"])


def test_a_growth_is_reported() -> None:
    recorded = {"forward": {"old": 3, "same": 1}}
    now = {"forward": {"old": 4, "same": 1, "new": 2, "clean": 0}}
    assert regressions(now, recorded) == [
        "forward: old has 4 wavefronts of bank conflicts, recorded were 3",
        "forward: new has 2 wavefronts of bank conflicts, recorded were 0",
    ]


@pytest.mark.parametrize("dim", DIMS)
def test_work_and_traffic_are_those_of_the_algorithm(dim: int, measured: Measured) -> None:
    """Two products forward, five backward; causal skips tiles above the diagonal."""
    product = 2 * TOKENS * TOKENS * dim * HEADS
    tensor_sectors = TOKENS * HEADS * dim * 2 // 32
    flops = {
        problem: sum(c["mma_flops"] for c in kernels.values())
        for problem, kernels in measured.items()
    }
    assert flops[f"forward dense {dim}"] == 2 * product
    assert flops[f"backward dense {dim}"] == 5 * product
    for direction in ("forward", "backward"):
        dense, causal = (flops[f"{direction} {mask} {dim}"] for mask in ("dense", "causal"))
        assert dense / 2 < causal < dense
        kernels = measured[f"{direction} dense {dim}"].values()
        tensors = {"forward": (3, 1), "backward": (5, 3)}[direction]
        assert sum(c["global_read_sectors"] for c in kernels) >= tensors[0] * tensor_sectors
        assert sum(c["global_write_sectors"] for c in kernels) >= tensors[1] * tensor_sectors


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void tileattn::cuda::kernel<a::Config<half_t, 64> >(a::Params)", "kernel"),
        ("scale(float*, int)", "scale"),
    ],
)
def test_kernel_name(signature: str, name: str) -> None:
    assert kernel_name(signature) == name
