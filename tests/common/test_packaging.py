"""What the built libraries need from outside, and what the installed package holds.

One wheel serves every torch >= 2.11 and every Python >= 3.10 only while the op library needs
nothing but torch's stable C shims, and the kernel libraries nothing of torch or Python at all.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import tileattn

ROOT = Path(__file__).parents[2]
STABLE_SHIM = re.compile(r"(aoti_torch|torch)_\w+$")
SYSTEM_VERSION = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
# Weak hooks of the compiler's start-up code; absent from most programs.
COMPILER_HOOKS = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


class Symbol(NamedTuple):
    name: str  # with its version, as in "memcpy@GLIBC_2.14"
    weak: bool


def package_folder() -> Path:
    """Where the libraries lie: in an editable install not beside the Python files."""
    spec = importlib.util.find_spec("tileattn._torch")
    assert spec is not None, "the op library is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


PACKAGE = package_folder()
OP_LIBRARY = PACKAGE / "_torch.so"
KERNEL_LIBRARIES = sorted(PACKAGE.glob("libtileattn_*.so"))


def symbols(library: Path, which: str) -> list[Symbol]:
    """The dynamic symbols that ``nm`` lists with ``which``, e.g. "--undefined-only"."""
    command = ["nm", "--dynamic", which, str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Symbol(line.split()[-1], weak=line.split()[-2] in "wv") for line in lines]


def not_stable(library: Path) -> list[str]:
    """Undefined symbols that are no stable shim, no C or C++ runtime, and not our own."""
    own = {s.name for kernels in KERNEL_LIBRARIES for s in symbols(kernels, "--defined-only")}
    return [
        s.name
        for s in symbols(library, "--undefined-only")
        if not STABLE_SHIM.match(s.name)
        and not SYSTEM_VERSION.search(s.name)
        and not (s.weak and s.name in COMPILER_HOOKS)
        and s.name not in own
    ]


def test_op_library_needs_only_stable_shims() -> None:
    assert not_stable(OP_LIBRARY) == []
    shims = [s for s in symbols(OP_LIBRARY, "--undefined-only") if STABLE_SHIM.match(s.name)]
    assert shims, "an op library that calls nothing of torch registers nothing"


def test_the_rule_finds_unstable_symbols() -> None:
    torch_python = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    found = not_stable(torch_python)
    assert any("c10" in name for name in found)
    assert any(name.startswith("Py") for name in found)


def test_shims_of_cuda_builds_are_weak() -> None:
    """CPU builds of torch lack them: a strong one would make the import fail."""
    on_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    always_there = {s.name for s in symbols(on_cpu, "--defined-only")}
    shims = [s for s in symbols(OP_LIBRARY, "--undefined-only") if STABLE_SHIM.match(s.name)]
    assert [s.name for s in shims if not s.weak and s.name not in always_there] == []


def test_kernel_libraries_know_no_framework() -> None:
    assert KERNEL_LIBRARIES
    for library in KERNEL_LIBRARIES:
        assert not_stable(library) == []
        names = [s.name for s in symbols(library, "--undefined-only")]
        assert [name for name in names if STABLE_SHIM.match(name)] == []


@pytest.mark.parametrize("library", [OP_LIBRARY, *KERNEL_LIBRARIES], ids=lambda path: path.name)
def test_libraries_are_found_beside_each_other(library: Path) -> None:
    command = ["readelf", "--dynamic", "--wide", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    assert not [name for name in needed if re.match(r"libpython|libcudart|libcuda\.", name)]
    assert [name for name in needed if "/" in name] == []
    search = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", text)
    assert set(search) <= {"$ORIGIN"}, "a path of the build machine"
    assert search or not any(name.startswith("libtileattn") for name in needed)


def test_audit_agrees() -> None:
    audit = pytest.importorskip("torch_abi_audit", reason="torch-abi-audit needs Python >= 3.11")
    report = audit.inspect_extension(OP_LIBRARY)
    assert report.torch.stable, report.torch
    oldest = tuple(int(part) for part in report.torch.min_torch_version.split("."))
    assert oldest <= (2, 11, 0), "the package declares torch>=2.11"


def test_headers_are_installed() -> None:
    source, installed = ROOT / "cpp/include", PACKAGE / "include"
    headers = sorted(path.relative_to(source) for path in source.rglob("*.h"))
    assert headers
    assert sorted(path.relative_to(installed) for path in installed.rglob("*.h")) == headers


def test_cmake_package_is_installed() -> None:
    folder = PACKAGE / "lib/cmake/tileattn"
    assert (folder / "tileattnConfig.cmake").is_file()
    assert str(ROOT) not in (folder / "tileattnTargets.cmake").read_text(), "not relocatable"


# What pip prints of a build that fails, shortened: Ninja, then pip's own page.
FAILING_BUILD = """\
  *** Building project with Ninja...
  [1/40] Building CXX object cpp/planner/CMakeFiles/tileattn_planner.dir/planner.cpp.o
  [2/40] Building CXX object cpp/cpu/CMakeFiles/tileattn_cpu.dir/executor.cpp.o
  FAILED: [code=1] cpp/cpu/CMakeFiles/tileattn_cpu.dir/executor.cpp.o
  /usr/bin/c++ -Icpp -O3 -o cpp/cpu/CMakeFiles/tileattn_cpu.dir/executor.cpp.o -c executor.cpp
  executor.cpp:7:1: error: 'first' does not name a type
  [3/40] Building CXX object cpp/cpu/CMakeFiles/tileattn_cpu.dir/dispatch.cpp.o
  FAILED: [code=1] cpp/cpu/CMakeFiles/tileattn_cpu.dir/dispatch.cpp.o
  dispatch.cpp:9:1: error: 'second' does not name a type
  ninja: build stopped: subcommand failed.
  error: subprocess-exited-with-error
  note: This error originates from a subprocess, and is likely not a problem with pip.
"""
FAILING_CONFIGURATION = """\
  *** Configuring CMake...
  CMake Error at CMakeLists.txt:3 (message):
    no compiler was found
  -- Configuring incomplete, errors occurred!
  error: subprocess-exited-with-error
"""


@pytest.mark.parametrize(
    ("said", "shown", "hidden"),
    [
        (
            FAILING_BUILD,
            ["[2/40] Building", "'first' does not"],
            ["/usr/bin/c++", "'second'", "subprocess"],
        ),
        (FAILING_CONFIGURATION, ["no compiler was found"], ["subprocess"]),
        ("pip's words\nSuccessfully installed tileattn-0.1.0\n", [], ["pip"]),
    ],
    ids=["build", "configuration", "none"],
)
def test_an_install_shows_steps_and_the_first_error(
    said: str, shown: list[str], hidden: list[str], tmp_path: Path
) -> None:
    (tmp_path / "said").write_text(said)
    pip = tmp_path / "pip"
    pip.write_text("#!/bin/sh\ncat said\n")
    pip.chmod(0o755)
    command = ["sh", ROOT / "cmake/install.sh", pip, "TILEATTN_CUDA=OFF"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == ("Successfully" in said)
    for text in shown:
        assert text in done.stdout
    for text in hidden:
        assert text not in done.stdout
    assert (tmp_path / "build/install.log").read_text() == said


MODULES = """
backend capabilities decays dense feature_maps linear linear_decode linear_variants local_linear
neighborhood neighborhood_unfused nn planner reference testing wersa
"""


@pytest.mark.parametrize("name", MODULES.split())
def test_modules_are_imported_from_the_package(name: str) -> None:
    """Also those that stand in a family's folder."""
    module = importlib.import_module(f"tileattn.{name}")
    assert getattr(tileattn, name) is module
