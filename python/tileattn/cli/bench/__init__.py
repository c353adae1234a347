"""``tileattn bench``: our kernels beside torch's, interleaved in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from tileattn.cli import console, machine, timing
from tileattn.cli.bench.presets import PRESETS
from tileattn.cli.bench.workloads import DTYPES, Problem, Workload, matmul
from tileattn.cli.pictures import import_pyplot


def bench(
    preset: Annotated[str | None, typer.Option(help=", ".join(PRESETS))] = None,
    length: Annotated[list[int] | None, typer.Option("--len", "-n", help="tokens")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    heads_kv: Annotated[int | None, typer.Option(min=1, help="if fewer than heads")] = None,
    dim: Annotated[int, typer.Option(min=8, max=256, help="head dim")] = 64,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "fp32",
    causal: Annotated[bool, typer.Option("--causal")] = False,
    window: Annotated[tuple[int, int] | None, typer.Option(help="keys before and after")] = None,
    backward: Annotated[bool, typer.Option("--backward", help="forward and backward")] = False,
    flex: Annotated[bool, typer.Option("--flex", help="also FlexAttention, compiled")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="of measuring per row")] = 3.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the figures")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture (PNG)")] = None,
) -> None:
    """Time our attention, torch's SDPA and, if asked, FlexAttention side by side.

    GFLOP/s count useful work: visible query-key pairs only. They are compared with torch's speed
    at a large matrix product of the same dtype, which takes its turns, too. Ratio: the median time
    of torch's fastest SDPA by that of the row's kernel.

    Neighborhoods: ratio is the time of our own attention over all tokens by that of the row's
    kernel. Bounds: what it is if only visible pairs cost time, and if all of the best tiles do.

    Linear attention: beside its chunked formula in PyTorch, or our causal attention; FLOPs are
    those of chunks of 64 tokens, however the kernel cuts.

    Examples:

        tileattn bench --preset cpu-dense --json benchmarks/results/my-cpu/dense.json

        tileattn bench -n 1024 -n 4096 --causal --backward --plot out.png

        tileattn bench -n 8192 --window 256 0 --flex

        tileattn bench --preset cpu-neighborhood --flex --plot neighborhood.png

        tileattn bench --preset cpu-linear --seconds 8
    """
    console.check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if preset is not None:
        if preset not in PRESETS:
            console.fail(f"preset is {preset!r}; allowed: {', '.join(PRESETS)}", 2)
        problems = PRESETS[preset]
    else:
        if dtype not in DTYPES:
            console.fail(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}", 2)
        shape = (batch, heads, heads_kv or heads, dim, dtype, causal, window, backward)
        problems = tuple(Workload(n, *shape) for n in length or [1024, 4096])
    if heads_kv is not None and heads % heads_kv != 0:
        console.fail(f"heads-kv is {heads_kv}; it must divide heads, {heads}", 2)
    if any(n < 1 for n in length or []) or (window and min(window) < 0):
        console.fail("lengths must be at least 1 and windows at least 0", 2)
    if plot is not None:
        import_pyplot()  # a missing matplotlib is told before minutes of measuring
    rows = _measure(problems, device, flex, seconds)
    cores = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    where = f"{machine.device_name(device)}{cores}, torch {torch.__version__}"
    console.show(f"Attention on {where}", _table(rows))
    if json_path is not None:
        _write_json(json_path, rows, device, seconds)
    if plot is not None:
        _draw(rows, device, plot)


def _measure(
    problems: tuple[Problem, ...], device: str, flex: bool, seconds: float
) -> list[dict[str, Any]]:
    """One row per workload and competitor."""
    rows = []
    with console.progress(len(problems), "bench") as tell:

        def after(finished: int) -> Callable[[float], None]:
            return lambda done: tell(finished + done)

        for n, problem in enumerate(problems):
            functions = problem.functions(device, flex)
            functions["matmul"], matmul_flops = matmul(problem.dtype, device)
            found = timing.interleave(functions, device, seconds, after(n))
            peers = (t.median for name, t in found.items() if name.startswith(problem.baseline))
            baseline = min(peers, default=float("nan"))
            ceiling = matmul_flops / found.pop("matmul").median
            for competitor, measured in found.items():
                speed = problem.flops / measured.median
                rows.append(
                    {
                        "workload": problem.name,
                        "kernel": competitor,
                        "median_ms": measured.median * 1e3,
                        "min_ms": measured.minimum * 1e3,
                        "gflops": speed / 1e9,
                        "to_matmul": speed / ceiling,
                        "ratio": baseline / measured.median,
                        **problem.bounds,
                        "rounds": measured.rounds,
                    }
                )
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    numeric = ("median ms", "min ms", "GFLOP/s", "to matmul", "ratio", "bounds", "rounds")
    made = console.table(*("workload", "kernel", *numeric), right=numeric)
    previous = ""
    for row in rows:
        made.add_row(
            row["workload"] if row["workload"] != previous else "",
            row["kernel"],
            f"{row['median_ms']:.3f}",
            f"{row['min_ms']:.3f}",
            f"{row['gflops']:.1f}",
            f"{row['to_matmul']:.0%}",
            f"{row['ratio']:.2f}",
            ", ".join(f"{row[name]:.1f}" for name in row if name.endswith("_bound")),
            str(row["rounds"]),
        )
        previous = row["workload"]
    return made


def _write_json(path: Path, rows: list[dict[str, Any]], device: str, seconds: float) -> None:
    method = f"calls in turn in one process for {seconds} s a row; median and minimum of one call"
    record = {"conditions": machine.conditions(device), "method": method, "results": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    console.out.print(f"wrote {path}", markup=False)


def _draw(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    pyplot = import_pyplot()
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.55 * len(workloads)), layout="constrained")
    height = 0.8 / len(kernels)
    for offset, kernel in enumerate(kernels):
        speeds = {row["workload"]: row["gflops"] for row in rows if row["kernel"] == kernel}
        places = [n + offset * height for n in range(len(workloads))]
        bars = axes.barh(
            places, [speeds.get(name, 0.0) for name in workloads], height * 0.9, label=kernel
        )
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    centre = height * (len(kernels) - 1) / 2
    axes.set_yticks([n + centre for n in range(len(workloads))], workloads)
    axes.invert_yaxis()
    axes.set(xlabel="useful GFLOP/s", title=machine.device_name(device))
    figure.legend(frameon=False, loc="outside lower center", ncols=len(kernels))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    console.out.print(f"wrote {path}", markup=False)
