"""Every CUDA kernel that was built runs in the PTX simulator, and computes the right thing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import Case, check
from simulator import Simulator

from tileattn import _native

ELEMENTS = {torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
# Two tiles and a border on either side, in most kernels.
SHORT = {"batch": 1, "len_q": 67, "len_k": 90, "heads": 1, "heads_kv": 1}
PATTERNS = ({}, {"causal": True}, {"window": (20, 5)})


def _cases(dims: set[int]) -> Iterator[Case]:
    """Every pattern, with and without modifiers, keys split, both orders of sums."""
    yield Case(batch=1, len_q=3, len_k=700, dim=32)
    for dim in dims:
        for pattern in PATTERNS:
            for modifiers in ({}, {"softcap": 5.0, "deterministic": True}):
                yield Case(**SHORT, dim=dim, options=pattern | modifiers)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=ELEMENTS.values())
def test_every_kernel_runs(dtype: torch.dtype, simulator: Simulator) -> None:
    rows = _native.cuda_kernels()
    with simulator.kernels(), simulator.configured(stats="collect", multiprocessors=16):
        simulator.counters()
        for capability in (80, 86, 90):
            dims = {row["dim"] for row in rows if capability != 90 or row["capability"] == 90}
            with simulator.configured(capability=capability):
                for case in _cases(dims):
                    check(case, dtype, "cpu", with_grad=capability != 90)
        launched = {counters["kernel"] for counters in simulator.counters()}
    others = set(ELEMENTS.values()) - {ELEMENTS[dtype]}
    built = {name for name in simulator.kernel_names() if not any(o in name for o in others)}
    assert built - launched == set()
