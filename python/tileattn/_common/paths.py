"""Where the compiled parts of this installation are."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def library_path() -> Path | None:
    """The file of the torch operators, or None in an installation without kernels."""
    # Found as if it were a submodule, so that the second folder of an editable install is searched
    # too; but it is no Python module, and only torch can load it.
    spec = importlib.util.find_spec("tileattn._torch")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def cmake_prefix() -> str:
    """The folder for CMAKE_PREFIX_PATH, so that C++ programs find tileattn by find_package.

    Raises:
        RuntimeError: in an installation without the compiled library.
    """
    library = library_path()
    if library is None:
        raise RuntimeError("this installation has no compiled library, so there is no C++ package")
    return str(library.parent)
