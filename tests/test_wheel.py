"""One wheel for every torch: built once, installed beside several, each time right.

Run by ``pytest -m wheel tests/test_wheel.py``; it downloads torch, several gigabytes of it, into
build/wheel-test, where the environments stay for the next time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build/wheel-test"
# The oldest that the package allows, the one it is built against, the newest that was tried.
TORCH_VERSIONS = ("2.11.0", "2.13.0", "2.14.1")
MOST_BYTES = 100 << 20  # the limit of PyPI for one file


def run(*command: str | Path) -> str:
    """Output of a command that must succeed, without this checkout on Python's path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    """A development build: for one architecture, but all parts of the package."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    options = ["-C", f"build-dir={FOLDER / 'build'}", "-C", "cmake.define.TILEATTN_CUDA_ARCHS=80"]
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", FOLDER, *options, ROOT)
    (made,) = FOLDER.glob("*.whl")
    return made


def environment_with(torch_version: str) -> Path:
    """The interpreter of a virtual environment that holds this torch and what tileattn needs."""
    folder = FOLDER / f"torch-{torch_version}"
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "--quiet", f"torch=={torch_version}")
        (folder / "complete").touch()
    return python


def test_contents(wheel: Path) -> None:
    assert wheel.name.endswith(f"-cp310-abi3-linux_{os.uname().machine}.whl")
    assert wheel.stat().st_size < MOST_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "_torch.so",
        "_native.abi3.so",
        "libtileattn_cpu.so",
        "py.typed",
        "include/tileattn/attention.h",
        "include/tileattn/pattern/pattern.h",
        "lib/cmake/tileattn/tileattnConfig.cmake",
    ):
        assert f"tileattn/{needed}" in names
    top = {name.split("/")[0] for name in names}
    assert top == {"tileattn", f"tileattn-{wheel.name.split('-')[1]}.dist-info"}


@pytest.mark.parametrize("torch_version", TORCH_VERSIONS)
def test_smoke(wheel: Path, torch_version: str) -> None:
    python = environment_with(torch_version)
    run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    run(python, "-m", "pip", "install", "--quiet", wheel)  # what it depends on
    said = run(python, "-I", ROOT / "tests/smoke.py")
    assert f"torch {torch_version}" in said
    assert said.strip().endswith(": ok")
    print(said, end="")
