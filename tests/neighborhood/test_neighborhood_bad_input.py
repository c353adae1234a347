"""Every argument of neighborhood attention, wrong in every way: axis, value and rule are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tileattn import capabilities, neighborhood_attention
from tileattn.planner import count_tiles, flop_bound, rank_tiles

ZERO = torch.zeros


def good(**changes: Any) -> dict[str, Any]:
    q, k, v = ZERO(2, 8, 9, 4, 16), ZERO(2, 8, 9, 2, 16), ZERO(2, 8, 9, 2, 8)
    return {"q": q, "k": k, "v": v, "window": 3} | changes


EXTRA = {"extra_keys": ZERO(2, 3, 2, 16), "extra_values": ZERO(2, 3, 2, 8)}

#: what is wrong -> (arguments, error, words that the message must hold)
BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "window 1": (good(window=1), ValueError, ["window is 1 on axis 0", ">= 2"]),
    "window 0 on one axis": (good(window=(3, 0)), ValueError, ["window is 0 on axis 1", ">= 2"]),
    "window float": (good(window=3.0), TypeError, ["window is 3.0", "one per grid axis"]),
    "window bool": (good(window=True), TypeError, ["window is True"]),
    "window entry": (good(window=(3, "3")), TypeError, ["window is '3' (str) on axis 1"]),
    "window rank": (good(window=(3, 3, 3)), ValueError, ["window has 3 entries", "2 of them"]),
    "window too long": (
        good(window=(3, 10)),
        ValueError,
        ["window is 10 on axis 1", "dilation 1", "at most the length of the axis, 9"],
    ),
    "window too long when dilated": (
        good(dilation=(3, 1)),
        ValueError,
        ["window is 3 on axis 0", "dilation 3", "9", "8"],
    ),
    "stride 0": (good(stride=(1, 0)), ValueError, ["stride is 0 on axis 1", ">= 1"]),
    "stride beyond window": (
        good(window=(5, 3), stride=4),
        ValueError,
        ["stride is 4 on axis 1", "at most the window there, 3"],
    ),
    "stride type": (good(stride=None), TypeError, ["stride is None"]),
    "dilation 0": (good(dilation=0), ValueError, ["dilation is 0 on axis 0", ">= 1"]),
    "dilation huge": (good(dilation=1 << 30), ValueError, ["dilation is 1073741824", "below"]),
    "causal int": (good(causal=1), TypeError, ["causal is 1 (int) on axis 0"]),
    "causal rank": (good(causal=(True,)), ValueError, ["causal has 1 entries", "2 of them"]),
    "scale": (good(scale=float("nan")), ValueError, ["scale is nan"]),
    "return_lse": (good(return_lse=1), TypeError, ["return_lse is 1"]),
    "backend": (good(backend="tpu"), ValueError, ["backend is 'tpu'"]),
    "q is a list": (good(q=[1.0]), TypeError, ["q is", "list", "tensor"]),
    "no grid": (good(q=ZERO(2, 4, 16)), ValueError, ["q is", "[batch, *grid, heads, head_dim]"]),
    "four axes": (good(q=ZERO(1, 2, 2, 2, 2, 4, 16)), ValueError, ["one to three grid axes"]),
    "k rank": (good(k=ZERO(2, 8, 2, 16)), ValueError, ["k is", "[8, 9]"]),
    "v grid": (good(v=ZERO(2, 9, 8, 2, 8)), ValueError, ["v is", "the grid of q, [8, 9]"]),
    "k batch": (good(k=ZERO(1, 8, 9, 2, 16)), ValueError, ["k has batch 1"]),
    "k head_dim": (good(k=ZERO(2, 8, 9, 2, 24)), ValueError, ["k has head_dim 24"]),
    "v heads": (good(v=ZERO(2, 8, 9, 4, 8)), ValueError, ["v has shape"]),
    "heads": (good(k=ZERO(2, 8, 9, 3, 16), v=ZERO(2, 8, 9, 3, 8)), ValueError, ["3 heads"]),
    "dtype": (good(k=ZERO(2, 8, 9, 2, 16).half()), TypeError, ["k has dtype"]),
    "int": (good(q=ZERO(2, 8, 9, 4, 16).int()), TypeError, ["q is", "allowed dtypes"]),
    "device": (good(v=ZERO(2, 8, 9, 2, 8, device="meta")), ValueError, ["v is on meta"]),
    "extra_values alone": (
        good(extra_values=EXTRA["extra_values"]),
        ValueError,
        ["extra_keys is None", "go together"],
    ),
    "extra_keys alone": (
        good(extra_keys=EXTRA["extra_keys"]),
        ValueError,
        ["extra_values is None"],
    ),
    "extra rank": (
        good(**EXTRA | {"extra_keys": ZERO(3, 2, 16)}),
        ValueError,
        ["extra_keys has shape [3, 2, 16]", "[2, extra, 2, 16]"],
    ),
    "extra numbers": (
        good(**EXTRA | {"extra_values": ZERO(2, 4, 2, 8)}),
        ValueError,
        ["extra_values has shape [2, 4, 2, 8]"],
    ),
    "extra dtype": (
        good(**EXTRA | {"extra_keys": ZERO(2, 3, 2, 16).half()}),
        TypeError,
        ["extra_keys has dtype torch.float16", "torch.float32"],
    ),
    "extra device": (
        good(**EXTRA | {"extra_keys": ZERO(2, 3, 2, 16, device="meta")}),
        ValueError,
        ["extra_keys is on meta"],
    ),
    "extra list": (good(**EXTRA | {"extra_keys": [1]}), TypeError, ["extra_keys is [1]"]),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, backend: str) -> None:
    arguments, error, words = BAD[name]
    with pytest.raises(error) as caught:
        neighborhood_attention(**{"backend": backend} | arguments)
    for word in words:
        assert word in str(caught.value)


def test_good_input_is_good() -> None:
    neighborhood_attention(**good(**EXTRA, stride=(3, 1), dilation=(2, 3), causal=[True, False]))


def test_float32_on_cuda_is_refused_with_the_reason() -> None:
    """The table, the text and the call agree."""
    reason = capabilities.why_not("cuda", "float32")
    meta = {n: t.to("meta") for n, t in good().items() if n != "window"}
    with pytest.raises(NotImplementedError, match=f"on backend 'cuda': {reason}"):
        neighborhood_attention(**meta, window=3, backend="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (3, 10)}, "window is 10 on axis 1"),
        ({"window": 3, "stride": 4}, "stride is 4 on axis 0"),
        ({"window": (3,)}, "window has 1 entries"),
    ],
)
def test_planner_refuses_the_same(options: dict[str, Any], message: str) -> None:
    for call in (
        lambda: flop_bound((8, 9), **options),
        lambda: rank_tiles((8, 9), **options),
        lambda: count_tiles((8, 9), query_tile=(4, 4), key_tile=(4, 4), **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="query_tile is 0 on axis 1"):
        count_tiles((8, 9), window=3, query_tile=(4, 0), key_tile=(4, 4))
    with pytest.raises(ValueError, match="one to three axes"):
        flop_bound((2, 2, 2, 2), window=2)
    with pytest.raises(ValueError, match="at most 4096"):
        rank_tiles((8, 9), window=3, queries=5000)
