"""The neighborhood reference: hand-worked masks, special cases, gradients numerically."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tileattn import reference


def rows(grid: tuple[int, ...], **options: Any) -> list[str]:
    mask = reference.neighborhood_mask(grid, **options)
    return ["".join(".1"[int(x)] for x in row) for row in mask]


MASKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sliding": (
        {"grid": (6,), "window": 3},
        ["111...", "111...", ".111..", "..111.", "...111", "...111"],
    ),
    "even window leans left": (
        {"grid": (6,), "window": 4},
        ["1111..", "1111..", "1111..", ".1111.", "..1111", "..1111"],
    ),
    "causal": (
        {"grid": (5,), "window": 3, "causal": True},
        ["1....", "11...", "111..", ".111.", "..111"],
    ),
    "strided": (  # leaders 1, 1, 3, 3, 5, 5
        {"grid": (6,), "window": 3, "stride": 2},
        ["111...", "111...", "..111.", "..111.", "...111", "...111"],
    ),
    "causal strided": (  # leaders 1, 1, 3, 3, 5, 5, 6; windows end at the query itself
        {"grid": (7,), "window": 3, "stride": 2, "causal": True},
        ["1......", "11.....", ".11....", ".111...", "...11..", "...111.", "....111"],
    ),
    "dilated": (
        {"grid": (7,), "window": 2, "dilation": 3},
        ["1..1...", ".1..1..", "..1..1.", "1..1...", ".1..1..", "..1..1.", "...1..1"],
    ),
    "stride equals window but does not divide": (
        {"grid": (5,), "window": 3, "stride": 3},
        ["111..", "111..", "111..", "..111", "..111"],
    ),
    "two axes": (
        {"grid": (2, 3), "window": (2, 2), "causal": (True, False)},
        ["11....", "11....", ".11...", "11.11.", "11.11.", ".11.11"],
    ),
    "clipped blocks with an offset": (
        {"grid": (5,), "window": 2, "stride": 2, "offset": 1, "clip": True},
        ["1....", ".11..", ".11..", "...11", "...11"],
    ),
    "halo": (
        {"grid": (6,), "window": 4, "stride": 2, "clip": True},
        ["111...", "111...", ".1111.", ".1111.", "...111", "...111"],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_by_hand(name: str) -> None:
    options, expected = MASKS[name]
    assert rows(**options) == expected


def test_definition_token_by_token() -> None:
    """The formulas of the definition, one query and key at a time."""
    for length, d, causal in itertools.product(range(2, 14), range(1, 4), (False, True)):
        for w in range(2, length // d + 1):
            for s in range(1, w + 1):
                mask = reference.neighborhood_mask(
                    (length,), w, stride=s, dilation=d, causal=causal
                )
                for i, j in itertools.product(range(length), range(length)):
                    g, p = i % d, i // d
                    group = math.ceil((length - g) / d)
                    leader = min(p // s * s + (s - 1 if causal else s // 2), group - 1)
                    start = max(leader - w + 1, 0)
                    end = p + 1
                    if not causal:
                        start = min(max(leader - w // 2, 0), group - w)
                        end = start + w
                    seen = j % d == g and start <= j // d < end
                    assert bool(mask[i, j]) == seen, (length, w, s, d, causal, i, j)


def inputs(*grid: int, heads: int = 4, heads_kv: int = 2, dim: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, *grid, h, dim) for h in (heads, heads_kv, heads_kv))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


@pytest.mark.parametrize("grid", [(9,), (3, 4), (2, 3, 4)])
def test_whole_window_is_dense_attention(grid: tuple[int, ...]) -> None:
    q, k, v = inputs(*grid)
    out, lse = reference.neighborhood_attention(q, k, v, window=grid, return_lse=True)
    flat = (t.flatten(1, len(grid)) for t in (q, k, v))
    expected, expected_lse = reference.attention(*flat, return_lse=True)
    torch.testing.assert_close(out, expected.reshape(out.shape))
    torch.testing.assert_close(lse, expected_lse.reshape(lse.shape))


def test_causal_whole_window_is_causal_attention() -> None:
    q, k, v = inputs(9)
    out = reference.neighborhood_attention(q, k, v, window=9, causal=True)
    torch.testing.assert_close(out, reference.attention(q, k, v, causal=True))


def test_stride_equal_to_window_is_blocked_attention() -> None:
    q, k, v = inputs(4, 6)
    out = reference.neighborhood_attention(q, k, v, window=(2, 3), stride=(2, 3))

    def blocks(t: Tensor) -> Tensor:
        t = t.unflatten(2, (2, 3)).unflatten(1, (2, 2)).transpose(2, 3)
        return t.flatten(3, 4).flatten(0, 2)

    expected = reference.attention(*(blocks(t) for t in (q, k, v)))
    torch.testing.assert_close(blocks(out), expected)


def test_dilation_splits_into_independent_groups() -> None:
    q, k, v = inputs(7, 8)
    out = reference.neighborhood_attention(q, k, v, window=(3, 2), dilation=(2, 3))
    for x, y in itertools.product(range(2), range(3)):
        group = [t[:, x::2, y::3] for t in (q, k, v)]
        alone = reference.neighborhood_attention(*group, window=(3, 2))
        torch.testing.assert_close(out[:, x::2, y::3], alone)


def test_every_query_sees_itself_and_exactly_the_window() -> None:
    mask = reference.neighborhood_mask((5, 7), (3, 4), stride=(2, 3))
    assert bool(mask.diagonal().all())
    assert mask.sum(1).unique().tolist() == [12]


def test_extra_keys_are_seen_by_every_query() -> None:
    q, k, v = inputs(3, 4)
    extra_k, extra_v = k[:, 0, :3], v[:, 1, :3]
    out = reference.neighborhood_attention(
        q, k, v, window=(3, 4), extra_keys=extra_k, extra_values=extra_v
    )
    keys, values = (torch.cat([t.flatten(1, 2), e], 1) for t, e in ((k, extra_k), (v, extra_v)))
    expected = reference.attention(q.flatten(1, 2), keys, values)
    torch.testing.assert_close(out.flatten(1, 2), expected)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    def call(q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> object:
        return reference.neighborhood_attention(
            q, k, v, window=(2, 2), extra_keys=extra_k, extra_values=extra_v, return_lse=True
        )

    shapes = (1, 2, 3, 2, 2), (1, 2, 3, 1, 2), (1, 2, 3, 1, 3), (1, 2, 1, 2), (1, 2, 1, 3)
    assert torch.autograd.gradcheck(call, [leaf(*shape) for shape in shapes])
