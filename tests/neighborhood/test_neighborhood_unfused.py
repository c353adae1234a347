"""neighborhood_qk and neighborhood_av: together the fused function, and each on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grid_cases import GridCase, check_grid
from torch import Tensor

from tileattn import neighborhood_av, neighborhood_qk, reference
from tileattn.neighborhood.unfused import relative_positions

SPECS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1d": ((9,), {"window": 4}),
    "2d strided": ((5, 7), {"window": (3, 4), "stride": (2, 3)}),
    "2d dilated": ((6, 7), {"window": (3, 2), "dilation": (2, 3)}),
    "causal": ((5, 6), {"window": (3, 4), "causal": (True, False), "stride": (2, 1)}),
    "3d": ((3, 4, 5), {"window": (2, 3, 2), "causal": (False, True, False)}),
}


def composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    return_lse: bool = True,
    **spec: Any,
) -> tuple[Tensor, Tensor]:
    """Attention from the two halves."""
    scores = neighborhood_qk(q, k, scale=scale, **spec)
    out = neighborhood_av(torch.softmax(scores, -1), v, **spec)
    return out, torch.logsumexp(scores.float(), -1)


@pytest.mark.parametrize("name", SPECS)
def test_halves_make_attention(name: str) -> None:
    """Values and gradients, also where heads are shared."""
    grid, spec = SPECS[name]
    check_grid(GridCase(grid, spec), torch.float32, "cpu", kernel=composed)


@pytest.mark.parametrize("name", SPECS)
def test_scores_by_the_mask(name: str) -> None:
    """The finite slots hold the visible pairs' scores in the order of the keys."""
    grid, spec = SPECS[name]
    tensors = GridCase(grid, spec, heads=1, heads_kv=1).tensors(torch.float64, "cpu")
    q, k = tensors["q"], tensors["k"]
    scores = neighborhood_qk(q, k, scale=1.0, **spec).flatten(1, -3)[:, :, 0]
    dense = torch.einsum("bxhd,byhd->bxy", q.flatten(1, -3), k.flatten(1, -3))
    mask = reference.neighborhood_mask(grid, **spec)
    for query, visible in enumerate(mask):
        held = scores[:, query].isfinite()[0]
        torch.testing.assert_close(scores[:, query, held], dense[:, query, visible])


@pytest.mark.parametrize("name", ["2d dilated", "causal"])
def test_gradcheck(name: str) -> None:
    grid, spec = SPECS[name]
    tensors = GridCase(grid, spec, batch=1, heads=2, heads_kv=1, dim=2, dim_v=3).tensors(
        torch.float64, "cpu"
    )
    q, k, v = (tensors[n].requires_grad_() for n in ("q", "k", "v"))

    def finite_scores(q: Tensor, k: Tensor) -> Tensor:
        scores = neighborhood_qk(q, k, **spec)
        return scores.masked_fill(scores == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(finite_scores, (q, k), fast_mode=True)
    assert torch.autograd.gradgradcheck(finite_scores, (q, k), fast_mode=True)
    slots = finite_scores(q, k).shape
    weights = torch.randn(slots, dtype=torch.float64, requires_grad=True)

    def values(w: Tensor, v: Tensor) -> Tensor:
        return neighborhood_av(w, v, **spec)

    assert torch.autograd.gradcheck(values, (weights, v), fast_mode=True)
    assert torch.autograd.gradgradcheck(values, (weights, v), fast_mode=True)


def test_weights_without_a_key_do_not_count() -> None:
    v = torch.randn(1, 5, 1, 2, dtype=torch.float64)
    weights = torch.full((1, 5, 1, 3), torch.nan, dtype=torch.float64)
    held = neighborhood_qk(v, v, window=3, causal=True).isfinite()
    weights = torch.where(held, 1.0, weights)
    out = neighborhood_av(weights, v, window=3, causal=True)
    torch.testing.assert_close(out[:, 0], v[:, 0])
    torch.testing.assert_close(out[:, 4], v[:, 2:].sum(1))


def test_half_precision_sums_in_float32() -> None:
    tensors = GridCase((700,), {}, dim=32, dim_v=32, heads_kv=4).tensors(torch.bfloat16, "cpu")
    weights = torch.full((2, 700, 4, 600), 1 / 600, dtype=torch.bfloat16)
    out = neighborhood_av(weights, tensors["v"], window=600)
    exact = neighborhood_av(weights.double(), tensors["v"].double(), window=600)
    torch.testing.assert_close(out, exact.bfloat16())


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    tensors = GridCase((5, 6), {}).tensors(torch.float32, "cpu")
    compiled = torch.compile(composed, fullgraph=True, backend="aot_eager")
    expected = composed(**tensors, window=(3, 2), causal=True)
    for actual, value in zip(
        compiled(**tensors, window=(3, 2), causal=True), expected, strict=True
    ):
        torch.testing.assert_close(actual, value)


def test_opcheck() -> None:
    q, k = torch.randn(1, 12, 2, 3, requires_grad=True), torch.randn(1, 12, 1, 3)
    spec = ([3, 4], [2, 3], [1, 2], [1, 1], [0, 1])
    weights = torch.randn(1, 12, 2, 6, requires_grad=True)
    ops = torch.ops.tileattn
    torch.library.opcheck(ops.stencil_dot.default, (q, k.requires_grad_(), 0.5, *spec))
    torch.library.opcheck(ops.stencil_gather.default, (weights, k, 0.5, *spec))
    torch.library.opcheck(ops.stencil_scatter.default, (weights, q, 1, 0.5, *spec))


def test_only_scaled_scores_are_rounded() -> None:
    """Products beyond float16 whose scaled sums, and gradients, are not."""
    exact = [(200 * torch.randn(1, 9, 2, 64)).half().double() for _ in "qk"]
    results = []
    for dtype in (torch.float64, torch.float16):
        q, k = leaves = [x.to(dtype).requires_grad_() for x in exact]
        scores = neighborhood_qk(q, k, window=5, scale=2.0**-12)
        arriving = torch.full_like(scores, 1000.0)
        results.append([scores, *torch.autograd.grad(scores, leaves, arriving)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected.half(), rtol=1e-3, atol=1e-3)


def test_relative_positions_by_hand() -> None:
    """Five tokens, three keys: the window moves inwards at both ends."""
    index = relative_positions((5,), window=3)
    assert index.tolist() == [[2, 3, 4], [1, 2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2]]
    two = relative_positions((5, 4), window=(3, 2), dilation=(1, 2))
    assert two.shape == (5, 4, 6)
    # The query's own slot has the middle of the table: 2 * 3 + 1.
    assert all((two[x, y] == 7).sum() == 1 for x in range(5) for y in range(4))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(1, 5, 2, 4), "3 slots"),
        (torch.zeros(1, 4, 2, 3), r"\[1, 5\]"),
        (torch.zeros(1, 5, 3, 3), "2 heads"),
        (torch.zeros(5, 2, 3), "weights is"),
    ],
)
def test_bad_weights(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighborhood_av(weights, torch.zeros(1, 5, 2, 8), window=3)
