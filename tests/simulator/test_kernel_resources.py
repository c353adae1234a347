"""No CUDA kernel spills registers: what ``ptxas -v`` said of each while it was compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tileattn import _native

ROOT = Path(__file__).parents[2]
# Logs of real compilations, shortened: one kernel that is fine, one that spills, and one whose
# wgmma became serial.
LOG = """\
ptxas info    : Compiling entry function '_Z4goodv' for 'sm_80'
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3badv' for 'sm_80'
ptxas info    : Function properties for _Z3badv
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized \
due to insufficient register resources for the wgmma pipeline in the function '_Z4slowv'
ptxas info    : Compiling entry function '_Z4slowv' for 'sm_90a'
ptxas info    : Function properties for _Z4slowv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""

Kernels = list[dict[str, Any]]


def resources(folder: Path) -> Kernels:
    """What cuda/resources.py reads from the logs of a build folder."""
    command = [sys.executable, ROOT / "cuda/resources.py", "--json", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: Kernels = json.loads(done.stdout)
    return found


def spilling(kernels: Kernels) -> list[str]:
    return [
        f"{k['kernel']} ({k['arch']}): {k['spill_stores']} bytes stored, {k['spill_loads']} loaded"
        for k in kernels
        if k["spill_stores"] or k["spill_loads"]
    ]


def test_spills_and_remarks_are_found(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/kernels.log").write_text(LOG)
    kernels = resources(tmp_path)
    assert [k["registers"] for k in kernels] == [168, 255, 168]
    (bad,) = spilling(kernels)
    assert "20 bytes stored, 16 loaded" in bad
    (slow,) = [k for k in kernels if k["remarks"]]
    assert slow["registers"] == 168 and "serialized" in slow["remarks"][0]
    checked = subprocess.run(
        [sys.executable, ROOT / "cuda/resources.py", "--check", tmp_path],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 1
    assert [line.split()[1].rstrip(":") for line in checked.stderr.splitlines()] == [
        "bad()",
        "slow()",
    ]


def test_no_kernel_spills() -> None:
    if not _native.cuda_kernels():
        pytest.skip("built without CUDA kernels")
    kernels = resources(ROOT / "build/Release")
    assert kernels, "CUDA kernels were built, but no log tells of them"
    assert spilling(kernels) == []
    assert [k["remarks"] for k in kernels if k["remarks"]] == []
    assert any(k["arch"] == "sm_90a" for k in kernels), "a build for tests has Hopper's kernels"
    assert any("Neighborhood" in k["kernel"] for k in kernels), "and those of grids"
