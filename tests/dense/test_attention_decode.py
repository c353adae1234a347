"""Few queries of a key head, as in decoding: keys and values are read where they lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Case, check
from tolerance import assert_as_exact

from tileattn import attention, reference

ONE = Case(batch=3, len_q=1, len_k=1024)
CASES = {
    "one_query": ONE,
    "mha": replace(ONE, heads=5, heads_kv=5),
    "mqa": replace(ONE, heads=8, heads_kv=1),
    "eight_of_a_key_head": replace(ONE, heads=16, heads_kv=2, len_k=391),
    "nine_of_a_key_head": replace(ONE, heads=9, heads_kv=1, len_k=391),
    "many_heads": replace(ONE, batch=1, heads=40, heads_kv=40, len_k=100),
    "three_queries": replace(ONE, len_q=3, options={"causal": True}),
    "six_queries": replace(ONE, len_q=6, heads_kv=4, options={"causal": True}),
    "eight_queries": replace(ONE, len_q=8, heads_kv=4, options={"causal": True}),
    "more_queries_than_keys": replace(ONE, len_q=4, len_k=2, options={"causal": True}),
    "one_key": replace(ONE, len_k=1),
    "last_block_of_one": replace(ONE, len_k=769),
    "no_keys": replace(ONE, len_k=0),
    "window": replace(ONE, len_q=2, options={"window": (100, 0), "sink_tokens": 3}),
    "window_before_the_end": replace(ONE, len_q=3, len_k=900, options={"window": (5, 0)}),
    "scores": replace(
        ONE, len_q=2, bias="hq", alibi="bh", options={"softcap": 5.0, "causal": True}
    ),
    "sinks": replace(ONE, heads=6, heads_kv=3, sinks=True),
    "no_keys_sinks": replace(ONE, len_k=0, sinks=True),
    "scale": replace(ONE, options={"scale": -0.3}),
    "packed": replace(
        ONE,
        seqlens=((1, 700), (0, 5), (2, 64), (1, 0), (3, 2), (1, 400)),
        tail=(2, 1),
        options={"causal": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, dtype: torch.dtype, device: str) -> None:
    check(CASES[name], dtype, device)


@pytest.mark.parametrize(("dim", "dim_v"), [(8, 8), (24, 40), (64, 128), (256, 8), (200, 256)])
def test_head_dims(dim: int, dim_v: int, dtype: torch.dtype, device: str) -> None:
    check(replace(ONE, len_k=150, dim=dim, dim_v=dim_v), dtype, device)
    check(replace(ONE, len_k=150, dim=dim, dim_v=dim_v, heads=3, heads_kv=3), dtype, device)


def heads_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def every_second_token(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, 1)[:, ::2]


def every_second_head(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, 2)[:, :, ::2]


SHAPES = {
    "queries_share_keys": replace(ONE, heads=8, heads_kv=4, len_q=2, options={"causal": True}),
    "one_query_each": replace(ONE, heads=8, heads_kv=8, len_k=397),
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("layout", [heads_first, every_second_token, every_second_head])
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_and_threads(shape: str, layout: Any, threads: int) -> None:
    case = SHAPES[shape]
    tensors = case.tensors(torch.float32, "cpu")
    expected = reference.attention(
        *(tensor.double() for tensor in tensors.values()), **case.options
    )
    peer = reference.attention(**tensors, **case.options)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        laid = {name: layout(tensor) for name, tensor in tensors.items()}
        assert_as_exact("out", attention(**laid, **case.options), expected, peer)
    finally:
        torch.set_num_threads(before)
