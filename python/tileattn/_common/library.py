"""The library of the operators ``torch.ops.tileattn.*`` and its compiled kernels.

The kernels are in ``tileattn/_torch.so``, which implements for CPU and CUDA the schemas that each
family defines. Without it everything still imports, and only ``backend="reference"`` can run.
"""

from __future__ import annotations

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
