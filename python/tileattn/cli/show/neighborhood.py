"""``tileattn show neighborhood``: a picture of what queries of a token grid see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from tileattn.cli import console, grids
from tileattn.cli.pictures import EMPTY, FULL, PARTIAL, import_pyplot
from tileattn.neighborhood._checks import check_spec
from tileattn.reference import neighborhood_mask


def neighborhood(
    grid: grids.Grid = "12x12",
    window: grids.Window = "5",
    stride: grids.Stride = "1",
    dilation: grids.Dilation = "1",
    causal: grids.Causal = "0",
    query: Annotated[
        list[str] | None, typer.Option(help="a query's place, e.g. 3x4; one or more")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")] = Path(
        "neighborhood.png"
    ),
) -> None:
    """Draw which keys of a grid the queries see, by the definition.

    A grid of two axes is drawn once for each query: those named, or a corner and the middle. On a
    grid of one axis all queries are drawn, a row for each.

    Examples:

        tileattn show neighborhood --grid 12x12 --window 5 --stride 3 --query 7x4

        tileattn show neighborhood --grid 32 --window 8 --dilation 2 --causal 1 -o causal.png
    """
    lengths = grids.numbers("grid", grid)
    rank = len(lengths)
    if rank > 2:
        console.fail(f"grid is {grid}; pictures are of one or two axes", 2)
    windows, strides, dilations = (
        grids.per_axis(name, text, rank)
        for name, text in (("window", window), ("stride", stride), ("dilation", dilation))
    )
    causal_axes = grids.flags("causal", causal, rank)
    try:
        check_spec(lengths, windows, strides, dilations, causal_axes)
    except ValueError as error:
        console.fail(str(error), 2)
    mask = neighborhood_mask(
        lengths, windows, stride=strides, dilation=dilations, causal=causal_axes
    )
    given = {"stride": (stride, "1"), "dilation": (dilation, "1"), "causal": (causal, "0")}
    changed = [f"{name} {text}" for name, (text, default) in given.items() if text != default]
    title = ", ".join([f"grid {grid}", f"window {window}", *changed])
    if rank == 1:
        _draw_rows(mask, title, output)
    else:
        middle = grids.shape([length // 2 for length in lengths])
        places = [_place(text, lengths) for text in query or ("0x0", middle)]
        _draw_grids(mask, lengths, places, title, output)
    count = mask.sum(-1)
    console.out.print(f"{title}: each query sees {int(count.min())} to {int(count.max())} keys.")
    console.out.print(f"wrote {output}", markup=False)


def _place(text: str, lengths: Sequence[int]) -> tuple[int, int]:
    """A query's row and column; exits with 2 where the grid has none there."""
    place = grids.numbers("query", text)
    if len(place) != 2 or place[0] >= lengths[0] or place[1] >= lengths[1]:
        console.fail(f"query is {text}; it must be a place on the grid, {grids.shape(lengths)}", 2)
    return place[0], place[1]


def _draw_grids(
    mask: Tensor,
    lengths: Sequence[int],
    places: list[tuple[int, int]],
    title: str,
    output: Path,
) -> None:
    pyplot = import_pyplot()
    figure, all_axes = pyplot.subplots(
        1, len(places), figsize=(3 * len(places), 3.7), squeeze=False, layout="constrained"
    )
    for axes, place in zip(all_axes[0], places, strict=True):
        seen = mask[place[0] * lengths[1] + place[1]]
        _draw_cells(axes, seen.unflatten(0, tuple(lengths)))
        # Queries that see the same: a stride makes them.
        rows, columns = (mask == seen).all(-1).unflatten(0, tuple(lengths)).nonzero(as_tuple=True)
        axes.scatter(columns, rows, s=16, facecolors="none", edgecolors=PARTIAL)
        axes.scatter(place[1], place[0], s=30, color=PARTIAL)
        axes.set_title(f"query {place[0]}, {place[1]}", fontsize=9)
    marks = {"marker": "o", "linestyle": "none", "color": PARTIAL}
    _finish(
        figure,
        title,
        output,
        [
            pyplot.Line2D([], [], label="query", **marks),
            pyplot.Line2D([], [], label="sees the same", fillstyle="none", **marks),
        ],
    )


def _draw_rows(mask: Tensor, title: str, output: Path) -> None:
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(4.5, 5), layout="constrained")
    _draw_cells(axes, mask)
    axes.set(xlabel="key", ylabel="query")
    _finish(figure, title, output, [])


def _draw_cells(axes: Any, seen: Tensor) -> None:
    from matplotlib.colors import ListedColormap

    rows, columns = seen.shape
    axes.imshow(seen.numpy(), cmap=ListedColormap([EMPTY, FULL]), vmin=0, vmax=1)
    axes.set_xticks([n - 0.5 for n in range(1, columns)], minor=True)
    axes.set_yticks([n - 0.5 for n in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def _finish(figure: Any, title: str, output: Path, handles: list[Any]) -> None:
    pyplot = import_pyplot()
    from matplotlib.patches import Patch

    figure.suptitle(title, fontsize=10)
    handles = [*handles, Patch(color=FULL, label="seen"), Patch(color=EMPTY, label="not seen")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(output, dpi=100)
    pyplot.close(figure)
