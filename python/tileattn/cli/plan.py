"""``tileattn plan``: what a neighborhood can save, and with which tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tileattn import planner
from tileattn.cli import console, grids
from tileattn.cli.pictures import FULL, PARTIAL, import_pyplot


def plan(
    grid: grids.Grid,
    window: grids.Window,
    stride: grids.Stride = "1",
    dilation: grids.Dilation = "1",
    causal: grids.Causal = "0",
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
    lengths = grids.numbers("grid", grid)
    options = {
        name: grids.per_axis(name, text, len(lengths))
        for name, text in (("window", window), ("stride", stride), ("dilation", dilation))
    }
    flags = grids.flags("causal", causal, len(lengths))
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


def _table(plans: list[planner.TilePlan], shapes: int, tile: tuple[int, int]) -> Table:
    numeric = ("visited tiles", "of all", "bound", "partial")
    made = console.table(
        f"The best of {shapes} shapes of {tile[0]} queries x {tile[1]} keys",
        *("query tile", "key tile", *numeric),
        right=numeric,
    )
    for row in plans:
        made.add_row(
            grids.shape(row.query_tile),
            grids.shape(row.key_tile),
            str(row.visited),
            str(row.all_tiles),
            f"{row.bound:.2f}x",
            f"{row.partial_share:.0%}",
        )
    return made


def _draw(plans: list[planner.TilePlan], bound: float, title: str, output: Path) -> None:
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 1.6 + 0.35 * len(plans)), layout="constrained")
    names = [f"{grids.shape(p.query_tile)} / {grids.shape(p.key_tile)}" for p in plans]
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
