"""What pictures share: matplotlib, and the colours of tiles."""

from __future__ import annotations

from typing import Any

from tileattn.cli import console

EMPTY, PARTIAL, FULL = "#f2f2f2", "#f0a830", "#2a6f97"


def import_pyplot() -> Any:
    """matplotlib.pyplot without a display; exits with a readable line where it is missing."""
    try:
        import matplotlib
    except ImportError:
        console.fail("pictures need matplotlib: pip install 'tileattn[plot]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
