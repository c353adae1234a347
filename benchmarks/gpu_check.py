"""Everything that needs a GPU, in one go: is it right, is it safe, how fast is it.

    python benchmarks/gpu_check.py [--out benchmarks/results/<name of the GPU>]

Runs with the tileattn that the interpreter imports: the editable install of ``make gpu-check``, or
a wheel unpacked into a folder on PYTHONPATH, which needs no compiler. Writes the log of every step,
the figures as JSON and a picture, and steps.json with exit codes and times; the exit code is 1 if a
step failed. ``--device cpu`` rehearses the steps on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TILEATTN = [sys.executable, "-m", "tileattn"]
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "tests")]
# Every kernel once, at sizes that the sanitizer's slow-down allows.
SANITIZED = "test_attention.py and {device} and f16 and (everything or gqa_long or odd or few_q)"


def steps(device: str, out: Path) -> dict[str, tuple[list[str], int]]:
    """Commands by name, with the seconds that each may take."""
    made = {
        "info": ([*TILEATTN, "info"], 60),
        "verify": ([*TILEATTN, "verify", "--device", device], 120),
        "tests": ([*PYTEST, "-k", device], 240),
    }
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and device == "cuda":
        for tool in ("memcheck", "racecheck"):
            options = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
            subset = [*PYTEST, "-k", SANITIZED.format(device=device)]
            made[tool] = (options + subset, 150)
    families = ("dense", "flex", "neighborhood", "linear")
    presets = [f"cuda-{name}" for name in families] if device == "cuda" else ["cpu-quick"]
    for preset in presets:
        files = ["--json", str(out / f"{preset}.json"), "--plot", str(out / f"{preset}.png")]
        flex = ["--flex"] if preset.endswith("flex") else []
        bench = ["bench", "--device", device, "--preset", preset, "--seconds", "0.3"]
        made[preset] = ([*TILEATTN, *bench, *flex, *files], 240)
    return made


def run(name: str, command: list[str], limit: int, out: Path) -> dict[str, object]:
    """Runs one step, its output into <name>.log; what became of it."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    with (out / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = 124
    seconds = round(time.perf_counter() - start, 1)
    last = (out / f"{name}.log").read_text().strip().splitlines()[-1:]
    print(f"{name}: exit code {code}, {seconds} s  {''.join(last)}", flush=True)
    return {"step": name, "exit_code": code, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here (--device cpu rehearses the steps)", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "rehearsal"
    slug = re.sub(r"\W+", "-", name).strip("-").lower()
    out = arguments.out or ROOT / "benchmarks/results" / slug
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    done = [run(n, *step, out) for n, step in steps(arguments.device, out).items()]
    (out / "steps.json").write_text(json.dumps(done, indent=2) + "\n")
    return int(any(step["exit_code"] for step in done))


if __name__ == "__main__":
    sys.exit(main())
