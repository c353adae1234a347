"""The planner against counting on the reference's masks, published bounds, and the command."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tileattn import reference
from tileattn.cli import app
from tileattn.planner import TilePlan, count_tiles, flop_bound, rank_tiles

PNG = b"\x89PNG"

SPECS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1d": ((21,), {"window": 5}),
    "1d strided": ((24,), {"window": 8, "stride": 4}),
    "2d": ((9, 12), {"window": (3, 5), "stride": (2, 1)}),
    "2d causal": ((8, 9), {"window": (4, 3), "causal": (True, False)}),
    "2d blocked": ((8, 16), {"window": (4, 8), "stride": (4, 8)}),
    "3d": ((3, 6, 8), {"window": (2, 3, 4), "stride": (1, 3, 2)}),
}


def tiles_of(grid: tuple[int, ...], tile: tuple[int, ...]) -> list[torch.Tensor]:
    """The tokens of each tile."""
    tokens = torch.arange(torch.Size(grid).numel()).reshape(grid)
    starts = itertools.product(*(range(0, n, t) for n, t in zip(grid, tile, strict=True)))
    return [
        tokens[tuple(slice(a, a + t) for a, t in zip(at, tile, strict=True))].flatten()
        for at in starts
    ]


@pytest.mark.parametrize("name", SPECS)
def test_counts_equal_the_dense_mask(name: str) -> None:
    grid, spec = SPECS[name]
    mask = reference.neighborhood_mask(grid, **spec)
    tokens = mask.shape[0]
    assert flop_bound(grid, **spec) == pytest.approx(tokens**2 / int(mask.sum()))
    for query_tile, key_tile in itertools.product(((4, 2, 3), (2, 4, 4)), repeat=2):
        query_tile, key_tile = query_tile[-len(grid) :], key_tile[-len(grid) :]
        visited = full = 0
        whole = torch.Size(key_tile).numel()
        queries, keys = tiles_of(grid, query_tile), tiles_of(grid, key_tile)
        for q, k in itertools.product(queries, keys):
            seen = mask[q][:, k]
            visited += bool(seen.any())
            full += bool(seen.all()) and len(k) == whole
        expected = TilePlan(query_tile, key_tile, len(queries) * len(keys), visited, full)
        found = count_tiles(grid, query_tile=query_tile, key_tile=key_tile, **spec)
        assert found == expected
        assert found.perfectly_block_sparse == (visited == full)


def test_dilation_counts_every_group() -> None:
    """Two groups of 8 tokens, in tiles of 4: each visits all 2 x 2 of its own tiles."""
    found = count_tiles((16,), window=8, dilation=2, query_tile=(4,), key_tile=(4,))
    assert (found.all_tiles, found.visited, found.full) == (16, 8, 8)
    assert found.bound == flop_bound((16,), window=8, dilation=2) == 2.0


@pytest.mark.parametrize(
    ("grid", "spec", "query_tile", "key_tile", "bound"),
    [
        ((32768,), {"window": 2048}, (128,), (128,), 15.1),
        ((32768,), {"window": 2048, "stride": 256}, (256,), (128,), 16.0),
        ((256, 256), {"window": 80}, (8, 24), (8, 16), 7.5),
        ((256, 256), {"window": 80, "stride": 16}, (16, 16), (8, 16), 10.2),
        ((30, 48, 80), {"window": (18, 24, 24), "stride": (16, 8, 8)}, (4, 8, 8), (2, 8, 8), 11.1),
    ],
)
def test_published_bounds(
    grid: tuple[int, ...],
    spec: dict[str, Any],
    query_tile: tuple[int, ...],
    key_tile: tuple[int, ...],
    bound: float,
) -> None:
    """Tile-wise bounds that the paper on Generalized Neighborhood Attention reports."""
    found = count_tiles(grid, query_tile=query_tile, key_tile=key_tile, **spec)
    assert found.bound == pytest.approx(bound, abs=0.06)
    assert found.bound <= flop_bound(grid, **spec) + 1e-9


def test_ranking() -> None:
    ranked = rank_tiles((32, 32), window=(12, 4), queries=16, keys=8)
    assert len(ranked) == 5 * 4  # 16 and 8 as products of two powers of two
    assert [plan.visited for plan in ranked] == sorted(plan.visited for plan in ranked)
    perfect = rank_tiles((64, 64), window=32, stride=16)[0]
    assert perfect.perfectly_block_sparse and perfect.partial_share == 0.0


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_command(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    video = ("--grid", "30x48x80", "--window", "18x24x24", "--stride", "16x8x8")
    result = call(*video, "--top", "4", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "FLOP-wise bound 11.11x" in result.output
    assert "perfectly block-sparse: yes" in result.output
    assert picture.read_bytes().startswith(PNG)
    result = call("--grid", "40x40", "--window", "9", "--dilation", "2", "--causal", "1x0")
    assert result.exit_code == 0, result.output
    assert "perfectly block-sparse: no" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "8x", "--window", "3"), "grid is '8x'"),
        (("--grid", "8x8", "--window", "9"), "window is 9 on axis 0"),
        (("--grid", "8x8", "--window", "3x3x3"), "window has 3 entries"),
        (("--grid", "8x8", "--window", "3", "--tile", "0", "4"), "queries is 0"),
    ],
)
def test_command_refuses(options: tuple[str, ...], message: str) -> None:
    result = call(*options)
    assert result.exit_code == 2
    assert message in result.output
