"""``tileattn show``: a picture of what the kernels do with each tile of a pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tileattn._common import library
from tileattn.cli import console
from tileattn.cli.pictures import EMPTY, FULL, PARTIAL, import_pyplot


def show(
    context: typer.Context,
    length: Annotated[int, typer.Option("--len", "-n", help="tokens of queries and keys")] = 1024,
    len_q: Annotated[int | None, typer.Option(help="queries, if not as many as keys")] = None,
    tile: Annotated[tuple[int, int], typer.Option(help="queries and keys of a tile")] = (64, 64),
    causal: Annotated[bool, typer.Option("--causal", help="hide later keys")] = False,
    window: Annotated[
        tuple[int, int], typer.Option(help="keys before and after; -1: all of them")
    ] = (-1, -1),
    sink_tokens: Annotated[int, typer.Option(help="leading keys always visible")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")] = Path(
        "pattern.png"
    ),
) -> None:
    """Draw which tiles of scores the kernels compute: full, partial (masked) or never visited.

    Examples:

        tileattn show --causal

        tileattn show -n 4096 --window 256 0 --sink-tokens 64 -o window.png

        tileattn show neighborhood --grid 12x12 --window 5
    """
    if context.invoked_subcommand is not None:
        return
    native = library.native()
    if native is None:
        console.fail("pictures come from the C++ patterns, and tileattn._native is not built")
    left, right = window
    options = {"left": left, "right": right, "sink_tokens": sink_tokens, "causal": causal}
    queries = length if len_q is None else len_q
    try:
        covers = native.tile_covers(queries, length, *tile, **options)
    except (ValueError, TypeError) as error:
        console.fail(str(error), 2)
    if covers.size == 0:
        console.fail("there are no tiles to draw: a length is 0", 2)
    names = {"full": native.FULL, "partial": native.PARTIAL, "empty": native.EMPTY}
    counts = {name: int((covers == value).sum()) for name, value in names.items()}
    sizes = f"{queries} x {length} tokens, tiles {tile[0]} x {tile[1]}"
    title = f"{native.pattern_name(**options)}, {sizes}"
    _draw(covers, counts, title, output)
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    computed = 1 - counts["empty"] / covers.size
    console.out.print(f"{title}: {summary}; {computed:.1%} of the tiles are computed.")
    console.out.print(f"wrote {output}", markup=False)


def _draw(covers: Any, counts: dict[str, int], title: str, output: Path) -> None:
    pyplot = import_pyplot()
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(figsize=(6, 6.6), layout="constrained")
    axes.imshow(covers, cmap=ListedColormap([EMPTY, PARTIAL, FULL]), vmin=0, vmax=2)
    axes.set(title=title, xlabel="key tile", ylabel="query tile")
    axes.title.set_fontsize(10)
    colours = {"full": FULL, "partial": PARTIAL, "empty": EMPTY}
    handles = [Patch(color=colours[name], label=f"{name}: {n}") for name, n in counts.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)
