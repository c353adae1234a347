"""Lists of problems for ``tileattn bench --preset``."""

from __future__ import annotations

from dataclasses import replace

from tileattn.cli.bench.grid_workloads import GridWorkload
from tileattn.cli.bench.linear_workloads import LinearWorkload
from tileattn.cli.bench.workloads import Problem, Workload

_WINDOWS = (
    GridWorkload((64, 64), (13, 13)),
    GridWorkload((16, 32, 32), (5, 7, 7)),
    GridWorkload((16384,), (256,)),
)
_STEPS = (GridWorkload((64, 64), (16, 16), (8, 8)),)
#: Perfectly block-sparse: every tile is visited as a whole or not at all.
_BLOCKS = (
    GridWorkload((64, 64), (16, 16), (16, 16)),
    GridWorkload((64, 64), (32, 32), (32, 32)),
    GridWorkload((16, 32, 32), (8, 16, 16), (8, 16, 16)),
    GridWorkload((16384,), (1024,), (1024,)),
)
#: The same window on grids of four times as many tokens each.
_GROWTH = tuple(GridWorkload((n, n), (13, 13)) for n in (32, 128))
_NEIGHBORHOODS = tuple(
    replace(workload, backward=backward)
    for workload in _WINDOWS + _STEPS + _BLOCKS + _GROWTH
    for backward in (False, True)
)

PRESETS: dict[str, tuple[Problem, ...]] = {
    "cpu-dense": (
        Workload(1024),
        Workload(4096),
        Workload(1024, backward=True),
        Workload(4096, backward=True),
        Workload(4096, causal=True),
        Workload(4096, causal=True, backward=True),
        Workload(8192),
        Workload(8192, window=(256, 0)),
        Workload(1024, dtype="bf16"),
        Workload(4096, dtype="bf16"),
        Workload(4096, dtype="bf16", backward=True),
    ),
    "cpu-fp32": tuple(
        Workload(length, dim=dim, backward=backward)
        for length in (1024, 2048)
        for dim in (64, 128)
        for backward in (False, True)
    ),
    "cpu-decode": tuple(
        Workload(1024, 64, 8, heads_kv, dim, queries=1)
        for heads_kv, dim in ((8, 64), (8, 128), (2, 64))
    ),
    "cpu-bf16": tuple(
        Workload(length, dim=dim, dtype="bf16", causal=causal, backward=backward)
        for dim in (64, 128)
        for length, causal in ((1024, False), (4096, False), (4096, True))
        for backward in (False, True)
    ),
    "cpu-neighborhood": _NEIGHBORHOODS,
    "cpu-linear": (
        *(LinearWorkload(4096, dim=d, backward=b) for d in (64, 128) for b in (False, True)),
        *(LinearWorkload(n, baseline="tileattn", heads=4) for n in (2048, 8192, 32768, 131072)),
        *(LinearWorkload(n, baseline="dense") for n in (64, 128, 256, 1024, 8192)),
    ),
    "cpu-quick": (Workload(512), Workload(512, backward=True), Workload(1024, causal=True)),
    "cuda-dense": tuple(
        Workload(length, 16384 // length, 64, 8, dim, "bf16", causal, None, backward)
        for dim in (64, 128, 256)
        for length in (2048, 4096, 8192, 16384)
        for causal in (False, True)
        for backward in (False, True)
    ),
    "cuda-neighborhood": tuple(
        GridWorkload(grid, window, heads=16, dim=dim, dtype="bf16", backward=backward)
        for grid, window in (((128, 128), (13, 13)), ((30, 48, 80), (18, 24, 24)))
        for dim in (64, 128)
        for backward in (False, True)
    ),
    "cuda-linear": tuple(
        LinearWorkload(16384, "chunked", batch, 64, 128, "bf16", backward)
        for batch in (1, 2)
        for backward in (False, True)
    ),
    "cuda-flex": tuple(
        Workload(4096, 4, 64, 8, 128, "bf16", causal, window, backward)
        for causal, window in ((False, None), (True, None), (True, (256, 0)))
        for backward in (False, True)
    ),
}
