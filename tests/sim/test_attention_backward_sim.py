"""The CUDA backward kernels, run by the PTX simulator, against autograd of the reference.

Both ways to compute dq are run: atomic sums, and the deterministic query-major kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # cases.py, tolerance.py
from cases import Case, Tensors, compare, run, upstream
from simulator import VARIABLES, Simulator

from tileattn import attention

MISSING = [name for name in VARIABLES if not os.environ.get(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no PTX simulator: {', '.join(MISSING)} not set (see simulator.py)"
)

# More than one tile of queries and of keys in every kernel, and no tile divides them.
LONG = {"batch": 1, "len_q": 131, "len_k": 203, "heads": 2, "heads_kv": 1, "dim": 64}
HALF, BFLOAT = torch.float16, torch.bfloat16
DETERMINISTIC = pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "fixed"])


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture(autouse=True)
def _on_simulator(simulator: Simulator) -> Iterator[None]:
    """Every test runs a forward and a backward there, and fails if it does not."""
    before = simulator.launches
    with simulator.kernels():
        yield
    assert simulator.launches >= before + 2, "the CUDA kernels were not reached"


def check(case: Case, dtype: torch.dtype = HALF, deterministic: bool = False) -> Tensors:
    """out, lse and all gradients of the kernels against the reference."""
    tensors = case.tensors(dtype, "cpu")
    options = case.options | {"deterministic": deterministic}
    rows = tensors["q"].shape[:-1]
    out = torch.empty(*rows, tensors["v"].shape[-1], dtype=dtype)
    actual = run(attention, tensors, options, upstream(out, torch.empty(rows)))
    compare(tensors, options, actual, with_grad=True)
    return actual


CASES = {
    "full": Case(**LONG),
    "one_tile": Case(batch=1, len_q=16, len_k=16, dim=64),
    "grouped_heads": Case(len_q=70, len_k=90, heads=6, heads_kv=2, dim=64),
    "causal": Case(**LONG, options={"causal": True}),
    "causal_more_queries": Case(**LONG | {"len_k": 70}, options={"causal": True}),
    "window": Case(**LONG, options={"window": (17, 5)}),
    "window_sinks_causal": Case(
        **LONG, options={"window": (20, 0), "sink_tokens": 70, "causal": True}
    ),
    "window_empty_rows": Case(**LONG | {"len_k": 20}, options={"window": (5, 0)}),
    "unseen_keys": Case(**LONG | {"len_q": 3}, options={"window": (5, 0)}),
    "negative_scale": Case(**LONG, options={"scale": -0.3}),
    "softcap": Case(**LONG, options={"softcap": 2.0, "scale": 0.5}),
    "alibi": Case(**LONG | {"batch": 2}, alibi="bh", options={"causal": True}),
    "sinks_empty_rows": Case(**LONG | {"len_k": 20}, sinks=True, options={"causal": True}),
    "everything": Case(
        **LONG,
        bias="hq",
        alibi="h",
        sinks=True,
        options={"softcap": 5.0, "causal": True, "window": (50, 0), "sink_tokens": 3},
    ),
    "no_keys_sinks": Case(batch=1, len_q=9, len_k=0, dim=64, sinks=True),
    "one_query": Case(batch=1, len_q=1, len_k=300, dim=64),
}


@DETERMINISTIC
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, deterministic: bool) -> None:
    check(CASES[name], HALF, deterministic)


@DETERMINISTIC
@pytest.mark.parametrize("name", ["full", "everything"])
def test_bfloat16(name: str, deterministic: bool) -> None:
    check(CASES[name], BFLOAT, deterministic)


@DETERMINISTIC
@pytest.mark.parametrize("bias", ["bhq", "bh", "bq", "hq", "b", "h", "q", "-"])
def test_bias_gradient(bias: str, deterministic: bool) -> None:
    """Every way to broadcast; under a softcap it differs from the gradient of the product."""
    case = Case(len_q=70, len_k=150, heads=4, heads_kv=2, dim=64, bias=bias)
    check(Case(**vars(case) | {"options": {"softcap": 2.0}}), HALF, deterministic)


@DETERMINISTIC
@pytest.mark.parametrize(
    ("dim", "dim_v"),
    [
        (8, 8),
        (32, 32),
        (40, 64),
        (96, 72),
        (128, 128),
        (104, 128),
        (192, 136),
        (256, 256),
        (8, 256),
    ],
)
def test_head_dims(dim: int, dim_v: int, deterministic: bool) -> None:
    """One bucket after the other; the channels up to it are padding."""
    case = Case(**LONG | {"dim": dim}, dim_v=dim_v, options={"causal": True})
    check(case, HALF, deterministic)


PACKED = {
    "odd": Case(seqlens=((3, 17), (70, 5), (1, 90), (129, 65)), heads=2, heads_kv=1, dim=64),
    "empty_sequences": Case(seqlens=((0, 0), (12, 20), (0, 9), (7, 0), (30, 11), (0, 0)), dim=64),
    "tail": Case(seqlens=((20, 30), (9, 4)), tail=(11, 70), dim=64),
}


@DETERMINISTIC
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed(name: str, causal: bool, deterministic: bool) -> None:
    check(Case(**vars(PACKED[name]) | {"options": {"causal": causal}}), HALF, deterministic)


def test_deterministic_gradients_repeat() -> None:
    case = Case(len_q=131, len_k=203, heads=4, heads_kv=2, dim=64, bias="bh")
    first, second = (check(case, HALF, deterministic=True) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@DETERMINISTIC
def test_expanded_incoming_gradient(deterministic: bool) -> None:
    """out.sum().backward() brings a dout whose strides are all 0."""
    tensors = Case(**LONG).tensors(HALF, "cpu")
    results = []
    for expanded in (True, False):
        q, k, v = (tensors[n].clone().requires_grad_() for n in "qkv")
        out = attention(q, k, v, deterministic=deterministic)
        ones = torch.ones((), dtype=HALF).expand(out.shape)
        results.append(torch.autograd.grad(out, (q, k, v), ones if expanded else ones.clone()))
    for name, one, other in zip("qkv", *results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=f"d{name}")


@DETERMINISTIC
def test_offsets_outside_of_the_tokens_are_clamped(
    simulator: Simulator, deterministic: bool
) -> None:
    """No value of cu_seqlens on the device can make a kernel read or write elsewhere.

    The simulator knows which memory belongs to the call and reports everything else.
    """
    tensors = Case(seqlens=((200, 200),), heads=1, heads_kv=1, dim=64).tensors(HALF, "cpu")
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    for offsets in ([-5, 1000, 7], [150, 20, 200], [190, 199, 200]):
        cu = torch.tensor(offsets, dtype=torch.int32)
        tail = (cu, cu, 0.1, 0.0, -1, -1, 0, False, deterministic)
        out, lse = simulator.forward(q, k, v, None, None, None, *tail)
        simulator.backward(q, None, q, k, v, out, lse, None, None, None, *tail, False)
