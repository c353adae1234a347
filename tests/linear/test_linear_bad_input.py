"""Every argument of linear attention, wrong: a readable error before any kernel starts."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from tileattn import _native, capabilities, decays, linear_attention, segment_state
from tileattn.linear import Options

ZERO, META = torch.zeros, "meta"


def good(**changes: Any) -> dict[str, Any]:
    q, k, v = ZERO(2, 5, 4, 16), ZERO(2, 5, 2, 16), ZERO(2, 5, 2, 8)
    return {"q": q, "k": k, "v": v} | changes


def packed(*offsets: int, **changes: Any) -> dict[str, Any]:
    arguments = {name: tensor[:1] for name, tensor in good().items()}
    return arguments | {"cu_seqlens": torch.tensor(offsets, dtype=torch.int32)} | changes


S, Z = ZERO(2, 4, 16, 8), ZERO(2, 4, 16)

#: what is wrong -> (arguments, error, words that the message must hold)
BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "q is a list": (good(q=[1.0]), TypeError, ["q is", "tensor"]),
    "q rank": (good(q=ZERO(5, 4, 16)), ValueError, ["q is", "[batch, tokens"]),
    "q int": (good(q=ZERO(2, 5, 4, 16).int()), TypeError, ["q is", "int32"]),
    "k tokens": (good(k=ZERO(2, 6, 2, 16), v=ZERO(2, 6, 2, 8)), ValueError, ["k has 6", "5"]),
    "k dtype": (good(k=ZERO(2, 5, 2, 16).half()), TypeError, ["k has dtype", "float16"]),
    "v heads": (good(v=ZERO(2, 5, 4, 8)), ValueError, ["v has shape"]),
    "heads": (good(k=ZERO(2, 5, 3, 16), v=ZERO(2, 5, 3, 8)), ValueError, ["3 heads", "divide"]),
    "log_decay positive": (
        good(log_decay=torch.full((4,), 0.1)),
        ValueError,
        ["log_decay has values up to 0.1", "<= 0"],
    ),
    "log_decay NaN": (good(log_decay=torch.full((4,), torch.nan)), ValueError, ["log_decay"]),
    "log_decay shape": (good(log_decay=ZERO(5)), ValueError, ["log_decay", "[5]", "[2, 5, 4]"]),
    "log_decay of key heads": (good(log_decay=ZERO(2)), ValueError, ["log_decay", "[2]"]),
    "log_decay int": (good(log_decay=ZERO(4).int()), TypeError, ["log_decay", "int32"]),
    "log_decay a number": (good(log_decay=-0.1), TypeError, ["log_decay is -0.1", "tensor"]),
    "log_decay device": (good(log_decay=ZERO(4, device=META)), ValueError, ["log_decay is on"]),
    "log_decay, not causal": (
        good(log_decay=ZERO(4), causal=False),
        ValueError,
        ["log_decay", "causal=False"],
    ),
    "feature_map name": (good(feature_map="elu"), ValueError, ["feature_map is 'elu'", "elu1"]),
    "feature_map type": (good(feature_map=3), TypeError, ["feature_map is 3", "function"]),
    "normalize": (good(normalize=1), TypeError, ["normalize is 1", "True or False"]),
    "causal": (good(causal=None), TypeError, ["causal is None"]),
    "scale": (good(scale="1"), TypeError, ["scale is '1'"]),
    "initial_state shape": (
        good(initial_state=ZERO(2, 2, 16, 8)),
        ValueError,
        ["initial_state has shape [2, 2, 16, 8]", "[2, 4, 16, 8]"],
    ),
    "initial_state dtype": (
        good(initial_state=S.half()),
        ValueError,
        ["initial_state has dtype", "float16", "float32"],
    ),
    "initial_state a pair": (
        good(initial_state=(S, Z)),
        TypeError,
        ["initial_state", "one tensor"],
    ),
    "initial_state no pair": (
        good(initial_state=S, normalize=True),
        TypeError,
        ["initial_state", "pair (S, z)"],
    ),
    "initial_state z shape": (
        good(initial_state=(S, S), normalize=True),
        ValueError,
        ["initial_state[1] has shape [2, 4, 16, 8]", "[2, 4, 16]"],
    ),
    "initial_state device": (good(initial_state=S.to(META)), ValueError, ["initial_state is on"]),
    "return_final_state": (good(return_final_state=0), TypeError, ["return_final_state is 0"]),
    "cu_seqlens with a batch": (
        good(cu_seqlens=torch.tensor([0, 5], dtype=torch.int32)),
        ValueError,
        ["q has batch 2", "cu_seqlens", "1"],
    ),
    "cu_seqlens dtype": (
        packed(0, 5, cu_seqlens=torch.tensor([0, 5])),
        TypeError,
        ["cu_seqlens has dtype torch.int64"],
    ),
    "cu_seqlens start": (packed(1, 5), ValueError, ["cu_seqlens starts at 1"]),
    "cu_seqlens falls": (packed(0, 4, 2), ValueError, ["cu_seqlens falls from 4 to 2"]),
    "cu_seqlens end": (packed(0, 6), ValueError, ["cu_seqlens ends at 6", "5 tokens"]),
    "cu_seqlens rank": (
        packed(0, cu_seqlens=ZERO(1, 2).int()),
        ValueError,
        ["cu_seqlens has shape [1, 2]"],
    ),
    "backend": (good(backend="fast"), ValueError, ["backend is 'fast'"]),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str, backend: str) -> None:
    arguments, error, words = BAD[name]
    with pytest.raises(error) as caught:
        linear_attention(**({"backend": backend} | arguments))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("arguments", [good(), packed(0, 4, 5)], ids=["batch", "packed"])
def test_the_unchanged_arguments_are_good(arguments: dict[str, Any], backend: str) -> None:
    assert linear_attention(**arguments, backend=backend).shape[-2:] == (4, 8)


def test_every_argument_is_tested() -> None:
    names = inspect.signature(linear_attention).parameters
    assert {n for n in names if not any(n in case[0] for case in BAD.values())} == set()


def test_type_hints_follow_the_signature() -> None:
    names = set(inspect.signature(linear_attention).parameters)
    assert set(Options.__annotations__) == names - {"q", "k", "v", "return_final_state"}


def test_what_only_the_reference_runs() -> None:
    arguments = {name: tensor.double() for name, tensor in good().items()}
    with pytest.raises(NotImplementedError, match="float64.*float32.*backend='reference'"):
        linear_attention(**arguments)
    assert linear_attention(**arguments, backend="reference").dtype == torch.float64
    wide = good(q=ZERO(2, 5, 4, 1025), k=ZERO(2, 5, 2, 1025))
    with pytest.raises(ValueError, match="k has head_dim 1025.*up to 1024.*backend='reference'"):
        linear_attention(**wide)
    if _native.cuda_kernels():
        assert not capabilities.why_not("cuda", "linear attention")
        assert "up to 128" in capabilities.why_not("cuda", "linear attention, any head dim")


def test_segment_state_heads() -> None:
    k, v = ZERO(2, 5, 2, 16), ZERO(2, 5, 2, 8)
    assert segment_state(k, v).shape == (2, 2, 16, 8)
    assert segment_state(k, v, log_decay=ZERO(6)).shape == (2, 6, 16, 8)
    assert segment_state(k, v, initial_state=S).shape == (2, 4, 16, 8)
    with pytest.raises(ValueError, match="the state has 3 heads"):
        segment_state(k, v, log_decay=ZERO(3))


def test_named_decays() -> None:
    close = torch.testing.assert_close
    close(decays.transnormer(2, layer=1, num_layers=3), -torch.tensor([2**-4, 2**-8]) * 0.50001)
    close(decays.lightning(4, layer=1, num_layers=2), -torch.tensor([0.0, 1.0, 2.0, 3.0]))
    close(decays.retention(2).exp(), 1 - torch.tensor([2**-5, 2**-6]))
    for decay in (decays.transnormer(8), decays.lightning(8), decays.retention(8)):
        linear_attention(ZERO(1, 3, 8, 4), *[ZERO(1, 3, 8, 4)] * 2, log_decay=decay)
    with pytest.raises(ValueError, match="layer is 3"):
        decays.lightning(4, layer=3, num_layers=3)
    with pytest.raises(ValueError, match="heads is 0"):
        decays.retention(0)
