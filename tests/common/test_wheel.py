"""One wheel for every torch and Python: that of ``make wheel``, installed beside several, each time
right.

Run by ``make wheel`` and then ``pytest -m wheel tests/common/test_wheel.py``; it downloads torch,
several gigabytes of it, into build/wheel-test, where the environments stay for the next time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/wheel-test"
# The oldest torch that the package allows, the one it is built against, the newest that was tried;
# the oldest Python and a newer one than it is built with.
ENVIRONMENTS = [
    ("3.11", "2.11.0"),
    ("3.11", "2.13.0"),
    ("3.11", "2.14.1"),
    ("3.10", "2.13.0"),
    ("3.13", "2.14.1"),
]
# Of a file; PyPI's limit is 100 MB, and families are to come.
MOST_BYTES = 60_000_000


def run(*command: str | Path) -> str:
    """Output of a command that must succeed, without this checkout on Python's path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = sorted((ROOT / "dist").glob("tileattn-*.whl"), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.skip("no wheel in dist/: make wheel")
    FOLDER.mkdir(parents=True, exist_ok=True)
    return found[-1]


def environment_with(python_version: str, torch_version: str) -> Path:
    """The interpreter of a virtual environment that holds this torch and what tileattn needs."""
    interpreter = shutil.which(f"python{python_version}")
    if interpreter is None:
        pytest.skip(f"no python{python_version} on this machine")
    folder = FOLDER / f"python-{python_version}-torch-{torch_version}"
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        run(interpreter, "-m", "venv", "--clear", folder)
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


@pytest.mark.parametrize(("python_version", "torch_version"), ENVIRONMENTS)
def test_smoke(wheel: Path, python_version: str, torch_version: str) -> None:
    python = environment_with(python_version, torch_version)
    run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    run(python, "-m", "pip", "install", "--quiet", wheel)  # what it depends on
    said = run(python, "-I", ROOT / "tests/common/smoke.py")
    assert f"torch {torch_version}" in said
    assert said.strip().endswith(": ok")
    print(said, end="")
    verified = run(python, "-I", "-m", "tileattn", "verify")
    assert re.search(r"^(\d+) of \1 cases are as exact as PyTorch", verified, re.M), verified
