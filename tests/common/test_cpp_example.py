"""A C++ program that finds the installed package compiles, and computes what one can by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tileattn

EXAMPLE = Path(__file__).parents[2] / "cpp/example"
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def configure(build: Path, project: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake", path=SEARCH)
    assert cmake is not None, "cmake belongs to requirements-dev.txt"
    prefix = f"-DCMAKE_PREFIX_PATH={tileattn.cmake_prefix()}"
    command = [cmake, "-S", project, "-B", build, "-G", "Unix Makefiles", prefix]
    return subprocess.run(command, capture_output=True, text=True)


def test_example_runs(tmp_path: Path) -> None:
    configured = configure(tmp_path)
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(["make", "-C", tmp_path], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "tiny_attention"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all as worked out by hand" in ran.stdout


def test_another_version_is_refused(tmp_path: Path) -> None:
    listing = (EXAMPLE / "CMakeLists.txt").read_text()
    assert "find_package(tileattn 0.1 REQUIRED)" in listing
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project)
    later = listing.replace("tileattn 0.1 REQUIRED", "tileattn 99 REQUIRED")
    (project / "CMakeLists.txt").write_text(later)
    configured = configure(tmp_path / "build", project)
    assert configured.returncode != 0
    assert "99" in configured.stderr


@pytest.mark.parametrize("component", ["cpu", "cuda", "nonsense"])
def test_components(tmp_path: Path, component: str) -> None:
    """COMPONENTS finds what was built, and only that."""
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project)
    listing = (project / "CMakeLists.txt").read_text()
    asked = listing.replace("REQUIRED)", f"REQUIRED COMPONENTS {component})")
    (project / "CMakeLists.txt").write_text(asked)
    built = Path(tileattn.cmake_prefix()) / f"libtileattn_{component}.so"
    configured = configure(tmp_path / "build", project)
    assert (configured.returncode == 0) == built.exists(), configured.stderr
