"""The CUDA kernels of neighborhood attention on the PTX simulator: what only a simulator can vary.

The results themselves are tested where ``device`` is "simulated" in test_neighborhood*.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grid_cases import GridCase, check_grid
from sim_report import kernel_name
from simulator import Simulator, built_dims

# A case for each bucket of head dims: several tiles of queries and of keys in every kernel, whole,
# partial and cut off ones.
HEADS = {"batch": 1, "heads": 2, "heads_kv": 1}
CASES = {
    "32": GridCase((331,), {"window": 90, "stride": 32}, **HEADS, dim=24, dim_v=32),
    "64": GridCase((17, 23), {"window": (8, 7), "dilation": (2, 1)}, **HEADS, dim=64, extra=9),
    "128": GridCase(
        (5, 9, 8),
        {"window": (3, 8, 4), "causal": (True, False, False)},
        **HEADS,
        dim=104,
        dim_v=128,
    ),
}
NAMES = pytest.mark.parametrize("name", CASES)
DETERMINISTIC = pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "fixed"])


def case_of(name: str, **options: Any) -> GridCase:
    case = CASES[name]
    return GridCase(**vars(case) | {"options": case.options | options})


@DETERMINISTIC
@NAMES
def test_no_order_of_warps_and_copies_changes_the_result(
    name: str, deterministic: bool, simulator: Simulator
) -> None:
    """Copies land as late or as early as they may, and warps run in several orders."""
    results = []
    for seed, arrival in ((1, "late"), (2, "early"), (3, "late"), (4, "early")):
        options = {"seed": seed, "async_": arrival, "capability": 80}
        with simulator.kernels(), simulator.configured(**options):
            case = case_of(name, deterministic=deterministic)
            results.append(check_grid(case, torch.float16, "cpu"))
    ordered = [n for n in results[0] if deterministic or n != "dq"]
    for result in results[1:]:
        for output in ordered:
            assert torch.equal(result[output], results[0][output]), output


@DETERMINISTIC
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CASES
        if int(name) <= max(built_dims("neighborhood_backward", 86), default=0)
    ],
)
def test_kernels_of_small_devices(name: str, deterministic: bool, simulator: Simulator) -> None:
    """sm_86 and sm_89 grant a block 99 KiB of shared memory, and have kernels of their own."""
    with simulator.kernels(), simulator.configured(capability=86, seed=5, async_="late"):
        check_grid(case_of(name, deterministic=deterministic), torch.float16, "cpu")


@pytest.mark.parametrize("name", ["64", "128"])
def test_one_multiprocessor(name: str, simulator: Simulator) -> None:
    """The keys are never split: one block walks over all of them."""
    with simulator.kernels(), simulator.configured(multiprocessors=1, capability=80):
        check_grid(CASES[name], torch.float16, "cpu")


def test_which_kernels_run(simulator: Simulator) -> None:
    """Those of grids; few queries with many keys are split where there is room."""
    case = GridCase((2, 200), {"window": (2, 200)}, **HEADS, dim=64, dim_v=64)
    tensors = case.tensors(torch.float16, "cpu")
    spec = ([2, 200], [1, 1], [1, 1], [0, 0], [0, 0], False, 0.1, False, False)
    for multiprocessors, expected in (
        (1, {"forward_kernel"}),
        (108, {"forward_kernel", "combine_kernel"}),
    ):
        with (
            simulator.kernels(),
            simulator.configured(stats="collect", multiprocessors=multiprocessors, capability=80),
        ):
            simulator.counters()
            torch.ops.tileattn.neighborhood_forward(*tensors.values(), None, None, *spec)
            counted = simulator.counters()
        assert {kernel_name(c["kernel"]) for c in counted} == expected
        assert any("Neighborhood" in c["kernel"] for c in counted)
