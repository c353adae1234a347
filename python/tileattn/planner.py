"""What a neighborhood can save, and which tiles save most of it.

Attention over all keys costs tokens ** 2. A window leaves only the visible pairs (the FLOP-wise
bound); kernels work in tiles, so what they save is bounded by the tiles that hold something
visible (the tile-wise bound). The counts are those of the kernels' own pattern.

Source: the analysis of Generalized Neighborhood Attention (Hassani et al., 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tileattn._common.checks import check_int, entries, wrong_type
from tileattn._common.library import native
from tileattn.neighborhood._checks import PerAxis, Spec, check_spec, per_axis


@dataclass(frozen=True)
class TilePlan:
    """Pairs of a query tile and a key tile, over all dilation groups.

    Attributes:
        query_tile, key_tile: tokens of a tile on each axis.
        all_tiles: what attention over all keys would visit.
        visited: those that hold something visible.
        full: of these, those that hide nothing and do not reach beyond the grid.
    """

    query_tile: tuple[int, ...]
    key_tile: tuple[int, ...]
    all_tiles: int
    visited: int
    full: int

    @property
    def bound(self) -> float:
        """The tile-wise bound: how many times fewer tiles than attention over all keys."""
        return self.all_tiles / self.visited

    @property
    def partial_share(self) -> float:
        """The share of visited tiles that need a mask."""
        return 1.0 - self.full / self.visited

    @property
    def perfectly_block_sparse(self) -> bool:
        """No work is wasted: every visited tile is full."""
        return self.full == self.visited


def flop_bound(
    grid: Sequence[int],
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
) -> float:
    """Tokens by the mean number of keys that a query sees.

    Args:
        grid: tokens on each of one to three axes.
        window, stride, dilation, causal: as in :func:`tileattn.neighborhood_attention`.

    Raises:
        TypeError, ValueError: arguments that are no neighborhood; names the axis.
        RuntimeError: in an installation without the compiled planner.
    """
    grid, spec = _checked(grid, window, stride, dilation, causal)
    bound: float = _compiled().flop_bound(grid, *spec[:4])
    return bound


def count_tiles(
    grid: Sequence[int],
    *,
    query_tile: Sequence[int],
    key_tile: Sequence[int],
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
) -> TilePlan:
    """Counts the tiles of one shape.

    Args:
        grid, window, stride, dilation, causal: as in :func:`flop_bound`.
        query_tile, key_tile: tokens of a tile on each axis, >= 1.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`flop_bound`.
    """
    grid, spec = _checked(grid, window, stride, dilation, causal)
    tiles = (
        per_axis(name, tile, len(grid), 1)
        for name, tile in (("query_tile", query_tile), ("key_tile", key_tile))
    )
    return _plan(_compiled().count_tiles(grid, *spec[:4], *tiles))


def rank_tiles(
    grid: Sequence[int],
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: bool | Sequence[bool] = False,
    queries: int = 64,
    keys: int = 64,
) -> list[TilePlan]:
    """Every tile shape, best first: fewest visited tiles, then fewest partial ones.

    Args:
        grid, window, stride, dilation, causal: as in :func:`flop_bound`.
        queries, keys: tokens of a tile, 1 to 4096; a shape is a way to write them as a product.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`flop_bound`.
    """
    grid, spec = _checked(grid, window, stride, dilation, causal)
    sizes = check_int("queries", queries), check_int("keys", keys)
    return [_plan(row) for row in _compiled().rank_tiles(grid, *spec[:4], *sizes)]


def _checked(
    grid: Sequence[int],
    window: PerAxis,
    stride: PerAxis,
    dilation: PerAxis,
    causal: bool | Sequence[bool],
) -> tuple[tuple[int, ...], Spec]:
    axes = entries(grid)
    if axes is None:
        raise wrong_type("grid", grid, "the lengths of one to three axes")
    if not 1 <= len(axes) <= 3:
        raise ValueError(f"grid is {grid!r}; it must be the lengths of one to three axes")
    lengths = per_axis("grid", axes, len(axes), 1)
    return lengths, check_spec(lengths, window, stride, dilation, causal)


def _plan(row: dict[str, Any]) -> TilePlan:
    return TilePlan(row["query_tile"], row["key_tile"], row["all"], row["visited"], row["full"])


def _compiled() -> Any:
    module = native()
    if module is None:
        raise RuntimeError("the planner is compiled, and tileattn._native is not built")
    return module
