"""Dependencies point one way: python -> bindings -> (cuda, cpp/cpu) -> cpp/include; in cuda from an
architecture to what its family shares, and from both to what all families share.

Kernels and headers know neither torch nor Python. The one exception is cpp/bench's ``--verify``,
which embeds an interpreter to check the benchmark's outputs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
FRAMEWORK = re.compile(r"\b(a?torch|aten|c10|pybind11|nanobind|python|pyobject|py_\w+)\b", re.I)
EXCEPTIONS = {"cpp/bench/verify.cpp"}
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)

# Project headers that the sources of a folder may include, by the folders that their paths begin
# with; a header without a folder is one of the same folder.
ALLOWED_INCLUDES = {
    "cpp/include": ("tileattn",),
    "cpp/planner": ("tileattn", "planner"),
    "cpp/cpu/common": ("tileattn", "cpu/common"),
    "cpp/cpu/softmax": ("tileattn", "cpu/common", "cpu/softmax", "planner"),
    "cpp/cpu/linear": ("tileattn", "cpu/common", "cpu/linear"),
    "bindings": ("tileattn",),
}
CUDA = ROOT / "cuda"
FAMILIES = {"softmax", "linear"}  # of kernels


def sources(folder: str) -> list[Path]:
    """C++ and CUDA files under the folder."""
    found = sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)
    assert found, folder
    return found


def code_of(path: Path) -> str:
    return COMMENT.sub("", path.read_text())


def frameworks_in(code: str) -> list[str]:
    return sorted({match[0] for match in FRAMEWORK.finditer(code)})


@pytest.mark.parametrize("folder", ["cpp", "cuda"])
def test_kernels_know_no_framework(folder: str) -> None:
    named = {str(path.relative_to(ROOT)): frameworks_in(code_of(path)) for path in sources(folder)}
    assert {path for path, words in named.items() if words} <= EXCEPTIONS, named


def test_the_exception_is_needed() -> None:
    for path in EXCEPTIONS:
        assert frameworks_in(code_of(ROOT / path)), f"{path} needs no exception any more"


@pytest.mark.parametrize("folder", ALLOWED_INCLUDES)
def test_includes_point_one_way(folder: str) -> None:
    for path in sources(folder):
        for header in INCLUDE.findall(code_of(path)):
            beside = "/" not in header and (path.parent / header).is_file()
            allowed = header.startswith(tuple(f"{top}/" for top in ALLOWED_INCLUDES[folder]))
            assert beside or allowed, f"{path} includes {header}"


def cuda_folder_of(header: str, beside: Path) -> str:
    """The folder of a project header: under cuda/, or else under cpp/ or cpp/include/."""
    found = beside / header
    return str(found.parent.relative_to(CUDA) if found.is_file() else Path(header).parent)


def test_cuda_families_and_architectures_are_apart() -> None:
    """A file of FAMILY/ARCH knows its own, FAMILY, common/ARCH and common; one that architectures
    share knows none of them. The list of what was built, in cuda/ itself, knows all families."""
    for path in sources("cuda"):
        family, *arch = path.parent.relative_to(CUDA).parts or ("",)
        homes = {"common", family} if family else {"common", *FAMILIES}
        allowed = homes.union(f"{home}/{arch[0]}" for home in homes if arch)
        for header in INCLUDE.findall(code_of(path)):
            folder = cuda_folder_of(header, path.parent)
            outside = folder.split("/")[0] in {"tileattn", "planner"}
            assert outside or folder in allowed, f"{path} includes {header}"


def test_cuda_has_no_other_families() -> None:
    folders = {p.relative_to(CUDA).parts[0] for p in sources("cuda") if p.parent != CUDA}
    assert folders == {"common", *FAMILIES}


# Folders of python/tileattn, and the other parts of it that each may import.
PYTHON_IMPORTS = {
    "_common": {"_native", "backend", "capabilities", "reference"},
    "dense": {"_common", "backend", "capabilities", "reference"},
    "neighborhood": {"_common", "backend", "capabilities", "reference"},
    "linear": {"_common", "backend", "capabilities", "reference", "dense"},
}


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """What the file imports of tileattn: the parts of the dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = (node.module or "").split(".")
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from (name[1:] for name in names if name[0] == "tileattn")


@pytest.mark.parametrize("family", PYTHON_IMPORTS)
def test_families_do_not_reach_into_one_another(family: str) -> None:
    """What several need stands in _common; of another family only what is public is used."""
    files = sorted((ROOT / "python/tileattn" / family).glob("*.py"))
    assert files
    for path in files:
        for part, *inner in imports(path):
            assert part in {family, *PYTHON_IMPORTS[family]}, f"{path} imports {part}"
            if part not in (family, "_common"):
                assert not [name for name in inner if name.startswith("_")], f"{path}: {inner}"


def test_reference_is_independent() -> None:
    """It is what kernels are checked against, so it shares no code with them."""
    for path in sorted((ROOT / "python/tileattn/reference").glob("*.py")):
        assert {part for part, *_ in imports(path)} <= {"reference"}, path


@pytest.mark.parametrize("folder", ["cpp", "cuda", "bindings", "python"])
def test_files_hold_one_idea(folder: str) -> None:
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES | {".py"}]
    long = {str(p): n for p in files if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
