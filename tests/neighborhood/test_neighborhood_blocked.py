"""Blocked variants on the neighborhood kernels: HaloNet's and Swin's attention."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from grid_cases import GridCase, check_grid
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tileattn import attention, halo_attention, reference, windowed_attention
from tileattn.neighborhood import _attend
from tileattn.neighborhood._checks import Spec
from tileattn.neighborhood._op import Tensors

BACKENDS = ["cpu", "reference"]


def qkv(*grid: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return list(GridCase(grid, {}, dim_v=16).tensors(dtype, "cpu").values())


def halonet(q: Tensor, k: Tensor, v: Tensor, block: int, halo: int, zeros: bool) -> Tensor:
    """Blocks of two axes one by one, from padded keys and values."""
    out = torch.zeros_like(q)
    x_axis, y_axis = q.shape[1:3]
    around = (0, 0, 0, 0, halo, halo + block, halo, halo + block)
    inside = pad(torch.ones_like(k[..., :1]), around).bool()
    k, v = pad(k, around), pad(v, around)
    for x, y in itertools.product(range(0, x_axis, block), range(0, y_axis, block)):
        rows = slice(x, min(x + block, x_axis)), slice(y, min(y + block, y_axis))
        keys = slice(x, x + block + 2 * halo), slice(y, y + block + 2 * halo)
        parts = [t[:, keys[0], keys[1]].flatten(1, 2) for t in (k, v)]
        seen = inside[:, keys[0], keys[1], 0].flatten(1, 2)[0, :, 0]
        if not zeros:
            parts = [t[:, seen] for t in parts]
        found = attention(q[:, rows[0], rows[1]].flatten(1, 2), *parts, backend="reference")
        out[:, rows[0], rows[1]] = found.unflatten(1, out[0, rows[0], rows[1]].shape[:2])
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("border", ["cut", "zeros"])
@pytest.mark.parametrize(
    ("grid", "block", "halo"), [((8, 12), 4, 2), ((7, 10), 4, 3), ((5, 9), 3, 0)]
)
def test_halo(grid: tuple[int, int], block: int, halo: int, border: Any, backend: str) -> None:
    q, k, v = qkv(*grid, dtype=torch.float64 if backend == "reference" else torch.float32)
    out = halo_attention(q, k, v, block=block, halo=halo, border=border, backend=backend)
    expected = halonet(q, k, v, block, halo, border == "zeros")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_halo_gradients_through_the_border() -> None:
    results = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [t.requires_grad_() for t in qkv(6, 7, dtype=dtype)]
        out = halo_attention(*leaves, block=3, halo=2, border="zeros", backend=backend)
        results.append(torch.autograd.grad(out.square().sum(), leaves))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def swin(q: Tensor, k: Tensor, v: Tensor, window: int, shift: int) -> Tensor:
    """Swin's way: roll, cut into windows, mask what was not next to each other, roll back."""
    x_axis, y_axis = q.shape[1:3]
    region = torch.zeros(x_axis, y_axis)
    borders = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for n, (xs, ys) in enumerate(itertools.product(borders, borders)):
        region[xs, ys] = n if shift else 0

    def windows(t: Tensor) -> Tensor:  # [B, windows, heads, tokens, D]
        t = t.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3)
        return t.flatten(3, 4).flatten(1, 2).transpose(2, 3)

    rolled = [torch.roll(t, (-shift, -shift), (1, 2)) for t in (q, k, v)]
    heads = q.shape[3] // k.shape[3]
    q, k, v = (windows(t) for t in rolled)
    k, v = (t.repeat_interleave(heads, 2) for t in (k, v))
    ids = windows(region[None, :, :, None, None])[0, :, 0, :, 0]
    out = scaled_dot_product_attention(q, k, v, (ids[:, None] == ids[:, :, None])[:, None])
    out = out.transpose(2, 3).unflatten(2, (window, window))
    out = out.unflatten(1, (x_axis // window, -1)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    return torch.roll(out, (shift, shift), (1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("grid", "window", "shift"), [((8, 12), 4, shift) for shift in range(4)] + [((24, 40), 8, 3)]
)
def test_windowed_equals_swin(grid: tuple[int, int], window: int, shift: int, backend: str) -> None:
    q, k, v = qkv(*grid)
    out = windowed_attention(q, k, v, window=window, shift=shift, backend=backend)
    torch.testing.assert_close(out, swin(q, k, v, window, shift), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(7, 11), (38, 20)])
@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
def test_windowed_where_the_window_does_not_divide(
    shift: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Blocks at borders are smaller; checked with gradients."""
    window = (4, 3)
    offset = tuple((w - s) % w for w, s in zip(window, shift, strict=True))
    leaves = [t.requires_grad_() for t in qkv(*grid)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out = windowed_attention(*leaves, window=window, shift=shift)
    expected = reference.neighborhood_attention(
        *exact, window=window, stride=window, offset=offset, clip=True
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(out.square().sum(), leaves)
    right = torch.autograd.grad(expected.square().sum(), exact)
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def blocked(q: Tensor, k: Tensor, v: Tensor, return_lse: bool, **spec: Any) -> Any:
    """What halo_attention and windowed_attention call, with all results."""
    assert return_lse
    zeros = (0,) * len(spec["window"])
    whole = {"dilation": tuple(1 for _ in zeros), "causal": zeros, "offset": zeros, "clip": True}
    return _attend(Tensors(q, k, v), Spec(**whole | spec), None, False, None)


@pytest.mark.parametrize("device", ["cpu", "cuda", "simulated"], indirect=True)
@pytest.mark.parametrize(
    ("grid", "spec"),
    [
        ((9, 14), {"window": (10, 10), "stride": (4, 4)}),
        ((9, 14), {"window": (4, 5), "stride": (4, 5), "offset": (1, 3)}),
        ((3, 6, 7), {"window": (2, 3, 4), "stride": (2, 3, 4), "offset": (1, 0, 2)}),
        ((150,), {"window": (70,), "stride": (7,), "offset": (2,)}),
    ],
)
def test_blocks_with_gradients(
    grid: tuple[int, ...], spec: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    check_grid(GridCase(grid, spec | {"clip": True}), dtype, device, kernel=blocked)


def test_window_equal_to_neighborhood_blocks() -> None:
    """stride = window that divides the grid: the same pattern by two definitions."""
    case = GridCase((8, 6), {"window": (4, 3), "stride": (4, 3)}, dim_v=16)
    actual = check_grid(case, torch.float32, "cpu")["out"]
    torch.testing.assert_close(windowed_attention(*qkv(8, 6), window=(4, 3)), actual)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (halo_attention, {"block": 0, "halo": 1}, "block is 0 on axis 0; it must be >= 1"),
        (halo_attention, {"block": (2, 2), "halo": (1, -1)}, "halo is -1 on axis 1"),
        (halo_attention, {"block": (2,), "halo": 1}, "block has 1 entries"),
        (halo_attention, {"block": 2, "halo": 1, "border": "wrap"}, "allowed: 'cut', 'zeros'"),
        (windowed_attention, {"window": (4, 0)}, "window is 0 on axis 1"),
        (windowed_attention, {"window": 4, "shift": (1, 4)}, "shift is 4 on axis 1; .*below"),
    ],
)
def test_bad_input(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*qkv(8, 8), **options)
