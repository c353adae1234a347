"""The library of the operators ``torch.ops.tileattn.*`` and its compiled kernels.

The kernels are in ``tileattn/_torch.so``, which implements for CPU and CUDA the schemas that each
family defines. Without it everything still imports, and only ``backend="reference"`` can run.
"""

from __future__ import annotations

from typing import Any

import torch

from tileattn._common.paths import library_path

LIBRARY = torch.library.Library("tileattn", "FRAGMENT")


def load_library() -> str | None:
    """Loads the compiled kernels; returns why that failed, or None."""
    path = library_path()
    if path is None:
        return "this installation has no compiled kernels (no tileattn/_torch.so)"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled kernels in {path} do not load: {error}"
    return None


#: Why the compiled kernels are absent; None where they are loaded.
LIBRARY_ERROR = load_library()


def native() -> Any | None:
    """The module tileattn._native, or None where it was not built."""
    try:
        from tileattn import _native  # type: ignore[attr-defined]
    except ImportError:
        return None
    return _native


def cuda_kernels() -> list[dict[str, Any]]:
    """A row for each CUDA kernel that was built; see cuda/kernels.cmake."""
    module = native()
    rows: list[dict[str, Any]] = [] if module is None else module.cuda_kernels()
    return rows
