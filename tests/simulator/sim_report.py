"""What the CUDA kernels do, counted by the PTX simulator; no GPU is needed.

    make sim-report                     # the table
    make sim-report ARGS="--json FILE"  # and all counters as JSON
    make sim-report ARGS="--record"     # and bank conflicts, which a test compares with, anew;
                                        # with TILEATTN_KERNELS=full in the environment

The problems are small and fixed: fp16, 256 tokens, forward and backward, dense and causal, and a
neighborhood on a 16 x 16 grid.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from simulator import Simulator, built_dims

RECORD = Path(__file__).with_name("sim_counters.json")
RECORD_HINT = 'make sim-report ARGS="--record"'
DIMS = (64, 96, 128, 256)
TOKENS, HEADS = 256, 2
FORWARD = torch.ops.tileattn.attention_forward
BACKWARD = torch.ops.tileattn.attention_backward
NEIGHBORHOOD_DIMS = (64, 128)
# Channels of q and k, those of v, and the feature map.
LINEAR = {"64": (64, 64, 0), "128": (128, 128, 0), "taylor2": (16, 64, 1)}
LINEAR_FORWARD = torch.ops.tileattn.linear_attention_forward
LINEAR_BACKWARD = torch.ops.tileattn.linear_attention_backward

# The counters of one kernel, as ptxsim_stats_json gives them; by problem, then by kernel.
Counters = dict[str, Any]
Measured = dict[str, dict[str, Counters]]


def kernel_name(signature: str) -> str:
    """The function's own name: no result type, namespaces, template arguments and parameters."""
    return signature.split("(")[0].split("<")[0].split("::")[-1].split()[-1]


def measure(simulator: Simulator) -> Measured:
    """Runs every problem once, as in training."""
    measured: Measured = {}
    with simulator.kernels(), simulator.configured(stats="collect", races=0, uninit=0):
        simulator.counters()
        for dim in DIMS:
            generator = torch.Generator().manual_seed(dim)
            shape = (1, TOKENS, HEADS, dim)
            q, k, v, dout = (torch.randn(shape, generator=generator).half() for _ in range(4))
            for causal in (False, True):
                tail = (None, None, dim**-0.5, 0.0, -1, -1, 0, causal, False)
                where = f"{'causal' if causal else 'dense'} {dim}"
                results = FORWARD(q, k, v, None, None, None, *tail, True)
                measured[f"forward {where}"] = _by_kernel(simulator)
                with simulator.configured(capability=90, multiprocessors=2):
                    FORWARD(q, k, v, None, None, None, *tail, True)
                measured[f"forward {where} on Hopper"] = _by_kernel(simulator)
                BACKWARD(dout, None, q, k, v, *results, None, None, None, *tail, False)
                measured[f"backward {where}"] = _by_kernel(simulator)
        for dim in sorted({*NEIGHBORHOOD_DIMS} & {*built_dims("neighborhood_forward")}):
            measured |= _measure_neighborhood(simulator, dim)
        for name, problem in LINEAR.items():
            if name.isdigit() and int(name) not in built_dims("linear"):
                continue
            measured |= _measure_linear(simulator, name, *problem)
    return measured


def _measure_neighborhood(simulator: Simulator, dim: int) -> Measured:
    generator = torch.Generator().manual_seed(dim)
    shape = (1, TOKENS // 16, 16, HEADS, dim)
    q, k, v, dout = (torch.randn(shape, generator=generator).half() for _ in range(4))
    spec = ([7, 7], [1, 1], [1, 1], [0, 0], [0, 0], False, dim**-0.5)
    measured: Measured = {}
    for how, deterministic in (("", False), (" deterministic", True)):
        tail = (None, None, *spec, deterministic)
        results = torch.ops.tileattn.neighborhood_forward(q, k, v, *tail, True)
        counted = _by_kernel(simulator)
        if not deterministic:
            measured[f"forward neighborhood {dim}"] = counted
        torch.ops.tileattn.neighborhood_backward(dout, None, q, k, v, *results, *tail)
        measured[f"backward neighborhood {dim}{how}"] = _by_kernel(simulator)
    return measured


def _measure_linear(
    simulator: Simulator, name: str, dim: int, dim_v: int, feature_map: int
) -> Measured:
    """Normalized, with a decay that has a gradient; in one go, and in segments."""
    generator = torch.Generator().manual_seed(dim)
    shape = (1, TOKENS, HEADS)
    q, k, v, dout = (
        torch.randn(*shape, channels, generator=generator).half()
        for channels in (dim, dim, dim_v, dim_v)
    )
    log_decay = -torch.rand(shape, generator=generator)
    tail = (log_decay, None, None, None, dim**-0.5, True, True)
    measured: Measured = {}
    for where, multiprocessors in (("", 1), (" in segments", 132)):
        with simulator.configured(multiprocessors=multiprocessors):
            inputs = (q.abs(), k.abs(), v)
            out, denominator, *_ = LINEAR_FORWARD(*inputs, *tail, feature_map)
            measured[f"linear forward {name}{where}"] = _by_kernel(simulator)
            kept = (out, denominator)
            LINEAR_BACKWARD(dout, None, None, *inputs, *kept, *tail, True, feature_map)
            measured[f"linear backward {name}{where}"] = _by_kernel(simulator)
    return measured


def _by_kernel(simulator: Simulator) -> dict[str, Counters]:
    """The instances of a template are one kernel."""
    kernels: dict[str, Counters] = {}
    for counters in simulator.counters():
        name = kernel_name(counters["kernel"])
        kernels[name] = _sum(kernels[name], counters) if name in kernels else counters
    return kernels


def _sum(a: Counters, b: Counters) -> Counters:
    total = a | b
    for key in a.keys() & b.keys():
        if isinstance(a[key], dict):
            total[key] = _sum(a[key], b[key])
        elif not isinstance(a[key], str):
            total[key] = a[key] + b[key]
    return total


def bank_conflicts(measured: Measured) -> dict[str, dict[str, int]]:
    """What is recorded."""
    return {
        problem: {name: c["bank_conflict_wavefronts"] for name, c in kernels.items()}
        for problem, kernels in measured.items()
    }


def regressions(now: dict[str, dict[str, int]], recorded: dict[str, dict[str, int]]) -> list[str]:
    """Kernels with more bank conflicts than recorded; a new kernel should have none."""
    return [
        f"{problem}: {name} has {count} wavefronts of bank conflicts, recorded were {before}"
        for problem, kernels in now.items()
        for name, count in kernels.items()
        if count > (before := recorded.get(problem, {}).get(name, 0))
    ]


def _table(measured: Measured) -> Table:
    table = Table(
        title=f"Kernels in the PTX simulator: fp16, {TOKENS} tokens, {HEADS} heads",
        caption="instructions: of warps; sectors: 32 bytes; bank conflicts: extra wavefronts",
    )
    for heading in ("problem", "kernel"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "launches",
        "instructions",
        "tensor-core MFLOP",
        "sectors read",
        "sectors written",
        "shared accesses",
        "bank conflicts",
    ):
        table.add_column(heading, justify="right")
    table.add_column("most frequent", no_wrap=True)
    for problem, kernels in measured.items():
        for i, (name, c) in enumerate(kernels.items()):
            total = sum(c["instructions"].values())
            frequent = sorted(c["instructions"].items(), key=lambda item: -item[1])[:3]
            table.add_row(
                "" if i else problem,
                name,
                str(c["launches"]),
                f"{total:,}",
                f"{c['mma_flops'] / 1e6:,.1f}",
                f"{c['global_read_sectors']:,}",
                f"{c['global_write_sectors']:,}",
                f"{c['shared_accesses']:,}",
                f"{c['bank_conflict_wavefronts']:,}",
                ", ".join(f"{kind} {100 * n / total:.0f}%" for kind, n in frequent),
                end_section=i == len(kernels) - 1,
            )
    return table


def _conflicts(measured: Measured) -> Table:
    """Opcodes with bank conflicts, and their source lines where compiled with -lineinfo."""
    table = Table(title="Bank conflicts by instruction")
    for heading in ("problem", "kernel", "instruction"):
        table.add_column(heading)
    table.add_column("wavefronts", justify="right")
    for problem, kernels in measured.items():
        for name, c in kernels.items():
            by_opcode: dict[str, int] = {}
            for text, count in c["bank_conflicts_at"].items():
                source = re.search(r"  \[[^]]+:\d+\]$", text)
                opcode = text.split()[0] + (source.group() if source else "")
                by_opcode[opcode] = by_opcode.get(opcode, 0) + count
            for opcode, count in sorted(by_opcode.items(), key=lambda item: -item[1]):
                table.add_row(problem, name, escape(opcode), f"{count:,}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all counters")
    parser.add_argument("--record", action="store_true", help=f"writes {RECORD.name}")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 180)
    with console.status("running the kernels in the simulator"):
        measured = measure(Simulator())
    console.print(_table(measured))
    if (conflicts := _conflicts(measured)).row_count:
        console.print(conflicts)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    if arguments.record:
        RECORD.write_text(json.dumps(bank_conflicts(measured), indent=1) + "\n")
        console.print(f"recorded: {RECORD}")


if __name__ == "__main__":
    main()
