"""``tileattn plan``: what a neighborhood can save, and with which tiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tileattn import planner
from tileattn.cli import console
from tileattn.cli.show import FULL, PARTIAL, import_pyplot

AXES = "tokens per axis, e.g. 30x48x80"


def plan(
    grid: Annotated[str, typer.Option(help=AXES)],
    window: Annotated[str, typer.Option(help="keys per axis, e.g. 18x24x24")],
    stride: Annotated[str, typer.Option(help="queries that share a window, per axis")] = "1",
    dilation: Annotated[str, typer.Option(help="gaps between keys, per axis")] = "1",
    causal: Annotated[str, typer.Option(help="1 for a causal axis, e.g. 1x0x0")] = "0",
    tile: Annotated[tuple[int, int], typer.Option(help="queries and keys of a tile")] = (64, 64),
    top: Annotated[int, typer.Option(min=1, help="shapes to list")] = 10,
    plot: Annotated[Path | None, typer.Option(help="write a picture (PNG)")] = None,
) -> None:
    """Count the tiles of a neighborhood: bounds of the speed-up, and a ranking of tile shapes.

    Examples:

        tileattn plan --grid 30x48x80 --window 18x24x24 --stride 16x8x8

        tileattn plan --grid 256x256 --window 80 --tile 128 128 --plot plan.png
    """
    if plot is not None:
        import_pyplot()  # a missing matplotlib is told first
    lengths = _numbers("grid", grid)
    options = {
        name: _for_axes(_numbers(name, text), len(lengths))
        for name, text in (("window", window), ("stride", stride), ("dilation", dilation))
    }
    flags = _for_axes([bool(n) for n in _numbers("causal", causal)], len(lengths))
    try:
        bound = planner.flop_bound(lengths, **options, causal=flags)
        queries, keys = tile
        ranked = planner.rank_tiles(lengths, **options, causal=flags, queries=queries, keys=keys)
    except (ValueError, TypeError) as error:
        console.fail(str(error), 2)
    except RuntimeError as error:
        console.fail(str(error))
    best = ranked[0]
    perfect = "yes" if best.perfectly_block_sparse else "no"
    console.out.print(f"FLOP-wise bound {bound:.2f}x, of the best tiles {best.bound:.2f}x")
    console.out.print(f"perfectly block-sparse: {perfect}")
    console.out.print(_table(ranked[:top], len(ranked), tile))
    if plot is not None:
        _draw(ranked[:top], bound, f"grid {grid}, window {window}, stride {stride}", plot)
        console.out.print(f"wrote {plot}", markup=False)


def _numbers(name: str, text: str) -> list[int]:
    if not re.fullmatch(r"\d+(x\d+)*", text):
        console.fail(f"{name} is {text!r}; it must be numbers with x between them, e.g. 8x8", 2)
    return [int(part) for part in text.split("x")]


def _for_axes(values: list[Any], rank: int) -> list[Any]:
    """One number stands for all axes."""
    return values * rank if len(values) == 1 else values


def _shape(tile: tuple[int, ...]) -> str:
    return "x".join(map(str, tile))


def _table(plans: list[planner.TilePlan], shapes: int, tile: tuple[int, int]) -> Table:
    numeric = ("visited tiles", "of all", "bound", "partial")
    made = console.table(
        f"The best of {shapes} shapes of {tile[0]} queries x {tile[1]} keys",
        *("query tile", "key tile", *numeric),
        right=numeric,
    )
    for row in plans:
        made.add_row(
            _shape(row.query_tile),
            _shape(row.key_tile),
            str(row.visited),
            str(row.all_tiles),
            f"{row.bound:.2f}x",
            f"{row.partial_share:.0%}",
        )
    return made


def _draw(plans: list[planner.TilePlan], bound: float, title: str, output: Path) -> None:
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 1.6 + 0.35 * len(plans)), layout="constrained")
    names = [f"{_shape(p.query_tile)} / {_shape(p.key_tile)}" for p in plans]
    # A bar is the tile-wise bound; its light part stands for the tiles that need a mask.
    axes.barh(names, [p.bound for p in plans], color=PARTIAL, label="partial tiles")
    axes.barh(names, [p.bound * (1 - p.partial_share) for p in plans], color=FULL, label="full")
    axes.axvline(bound, color="black", linestyle="--", label=f"FLOP-wise bound {bound:.1f}x")
    axes.invert_yaxis()
    axes.set(title=title, xlabel="times fewer tiles than attention over all keys")
    axes.set_ylabel("query tile / key tile")
    axes.title.set_fontsize(10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)
