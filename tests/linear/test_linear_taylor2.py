"""Linear attention with taylor2, whose features the kernels never build in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import LIMIT, Case, Tensors, check, rms, run
from simulator import Simulator
from test_linear import cases
from torch import Tensor

from tileattn import (
    capabilities,
    feature_maps,
    linear_attention,
    linear_attention_step,
    segment_state,
)
from tileattn.linear._checks import require_kernel
from tileattn.linear._op import FEATURE_MAPS


def case(options: dict[str, Any] | None = None, **fields: Any) -> Case:
    fields = {"dim": 8, "dim_v": 40} | fields
    return Case(**fields, options={"feature_map": "taylor2"} | (options or {}))


NORMALIZE, FULL = {"normalize": True}, {"causal": False}
FEW: dict[str, Any] = {"batch": 1, "len": 400, "heads": 1, "heads_kv": 1}

CASES = {
    "plain": case(),
    "no_state": case(state=False),
    "mha": case(heads=3, heads_kv=3),
    "mqa": case(heads=6, heads_kv=1, decay="h"),
    "constant_decay": case(decay="h"),
    "decay": case(decay="bth"),
    "strong_decay": case(decay="bth", strength=8.0),
    "normalized": case(NORMALIZE),
    "normalized_decay": case(NORMALIZE, decay="bth"),
    "bidirectional": case(FULL),
    "bidirectional_normalized": case(FULL | NORMALIZE),
    "scale": case({"scale": -3.0}, decay="bth"),
    "normalized_scale": case(NORMALIZE | {"scale": 2.5}, decay="bth"),
    "one_token": case(len=1, decay="bth"),
    "one_chunk": case(len=48, decay="bth"),
    "one_more": case(NORMALIZE, len=49, decay="bth"),
    "based": case(NORMALIZE, dim=16, dim_v=64, decay="bth"),
    "narrow_values": case(dim=16, dim_v=8, decay="bth"),
    "wide_values": case(NORMALIZE, dim=16, dim_v=128, len=70, batch=1, heads=2, decay="bth"),
    # The moments are beyond what float16 holds.
    "large_state": case({"scale": 2**-7}, batch=1, len=300, heads=2, heads_kv=1, gain=1000.0),
    "few_heads": case(**FEW, decay="bth"),
    "few_heads_constant_decay": case(**FEW, decay="h"),
    "few_heads_normalized": case(NORMALIZE, **FEW, decay="bth"),
    "few_heads_bidirectional": case(FULL | NORMALIZE, **FEW),
    "packed": case(seqlens=(3, 70, 0, 1, 133), tail=5, decay="bth"),
    "packed_normalized": case(NORMALIZE, seqlens=(60, 0, 49), tail=5),
    "packed_bidirectional": case(FULL, seqlens=(60, 0, 49)),
    "packed_few_heads": case(seqlens=(400,), heads=1, heads_kv=1, tail=3, decay="bth"),
}

ANY_HEAD_DIM = {
    "one_channel": case(dim=1, decay="bth"),
    "odd": case(dim=13, dim_v=1, decay="bth"),
    "odd_values": case(NORMALIZE, dim_v=12, decay="bth"),
    "wide": case(dim=24, dim_v=100, len=60, batch=1, heads=2, heads_kv=1, decay="bth"),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, dtype: torch.dtype, linear_device: str) -> None:
    check(CASES[name], dtype, linear_device)


@pytest.mark.parametrize("name", ANY_HEAD_DIM)
def test_any_head_dim(name: str, dtype: torch.dtype) -> None:
    check(ANY_HEAD_DIM[name], dtype)


@st.composite
def narrow_cases(draw: st.DrawFn, step: int = 1) -> Case:
    drawn = draw(cases(step))
    fields = vars(drawn) | {"dim": step * draw(st.integers(1, 20 // step))}
    return Case(**fields | {"options": drawn.options | {"feature_map": "taylor2"}})


@given(case=narrow_cases(), seed=st.integers(0, 3))
@settings(max_examples=10)
def test_random_cases(case: Case, seed: int, dtype: torch.dtype) -> None:
    check(case, dtype, seed=seed)


@given(case=narrow_cases(step=8), seed=st.integers(0, 3))
@settings(max_examples=10)
def test_random_cases_simulated(case: Case, seed: int, simulator: Simulator) -> None:
    with simulator.kernels():
        check(case, torch.float16, seed=seed)


def on(device: str, tensors: Tensors) -> Tensors:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def assert_close(actual: Tensors, expected: Tensors, dtype: torch.dtype) -> None:
    for name, value in expected.items():
        error = rms(actual[name].double() - value.double())
        assert error <= LIMIT[dtype] * rms(value.double()), name


@pytest.mark.parametrize("name", ["decay", "normalized_decay", "bidirectional", "few_heads"])
def test_fused_is_unfused(name: str) -> None:
    """A function builds its features in memory; out, states and gradients are the same."""
    tensors, options = CASES[name].tensors(torch.float32), CASES[name].options
    unfused = options | {"feature_map": feature_maps.taylor2}
    assert_close(
        run(linear_attention, tensors, options, exact=False),
        run(linear_attention, tensors, unfused, exact=False),
        torch.float32,
    )


def test_the_features_are_not_built(monkeypatch: pytest.MonkeyPatch, linear_device: str) -> None:
    def built(x: Tensor) -> Tensor:
        raise AssertionError("features in memory")

    monkeypatch.setitem(feature_maps.NAMED, "taylor2", built)
    x = torch.randn(1, 9, 2, 8, dtype=torch.float16, device=linear_device)
    linear_attention(x, x, x, feature_map="taylor2")
    segment_state(x, x, feature_map="taylor2")
    with pytest.raises(AssertionError, match="in memory"):
        linear_attention(x, x, x, feature_map="taylor2", backend="reference")
    assert "PyTorch" in capabilities.why_not("reference", "taylor2 inside of the kernel")


@pytest.mark.parametrize("name", ["decay", "normalized_decay", "few_heads", "packed"])
def test_segment_state(name: str, dtype: torch.dtype, linear_device: str) -> None:
    """It is the final state, and differentiable like it."""
    tensors, options = on(linear_device, CASES[name].tensors(dtype)), CASES[name].options

    def state_only(q: Tensor, **rest: Any) -> tuple[Tensor, object]:
        del rest["return_final_state"]
        return q * 0, segment_state(**rest)

    def whole(q: Tensor, **rest: Any) -> tuple[Tensor, object]:
        return q * 0, linear_attention(q, **rest)[1]

    found, expected = (run(f, tensors, options, exact=False) for f in (state_only, whole))
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_states_are_those_of_built_features(normalize: bool) -> None:
    """A fused call, one that builds features, and steps continue each other."""
    made = case({"normalize": normalize}, decay="bth", state=False)
    tensors, options = made.tensors(torch.float32), made.options
    whole, last = linear_attention(**tensors, **options, return_final_state=True)
    state: Any = None
    outs = []
    for begin, end, feature_map in ((0, 50, "taylor2"), (50, 80, feature_maps.taylor2)):
        part = {name: tensor[:, begin:end] for name, tensor in tensors.items()}
        changed = options | {"feature_map": feature_map, "initial_state": state}
        out, state = linear_attention(**part, **changed, return_final_state=True)
        outs.append(out)
    for t in range(80, 113):
        token = {name: tensor[:, t] for name, tensor in tensors.items()}
        outs.append(linear_attention_step(**token, state=state, feature_map="taylor2")[:, None])
    pairs = [(torch.cat(outs, 1), whole)]
    pairs += zip(state, last, strict=True) if normalize else [(state, last)]
    for actual, expected in pairs:
        assert rms(actual - expected) <= LIMIT[torch.float32] * rms(expected)


def test_future_tokens_do_not_matter(dtype: torch.dtype, linear_device: str) -> None:
    """Not even keys that are NaN, in the same chunk."""
    made = case(decay="bth", state=False)
    tensors, options = on(linear_device, made.tensors(dtype)), made.options
    expected = linear_attention(**tensors, **options)
    for name, poison in (("k", torch.nan), ("v", 1e4)):
        poisoned = tensors | {name: tensors[name].clone()}
        poisoned[name][:, 20:] = poison
        out = linear_attention(**poisoned, **options)
        assert torch.equal(out[:, :20], expected[:, :20]), name


def test_as_many_features_as_the_state_takes() -> None:
    x, v = torch.randn(1, 50, 1, 31), torch.randn(1, 50, 1, 4)
    out, state = linear_attention(x, x, v, feature_map="taylor2", return_final_state=True)
    assert state.shape == (1, 1, 993, 4) and bool(out.isfinite().all())
    x = torch.randn(1, 5, 1, 32)
    with pytest.raises(ValueError, match=r"k has .*1057.*up to 1024.*backend='reference'"):
        linear_attention(x, x, x, feature_map="taylor2")
    linear_attention(x, x, x, feature_map="taylor2", backend="reference")


def test_head_dims_on_cuda(simulator: Simulator) -> None:
    """Python refuses those that the kernels would refuse."""
    x = torch.randn(1, 5, 1, 24, dtype=torch.float16)
    with simulator.kernels(), pytest.raises(RuntimeError, match="head dims of q and k up to 16"):
        linear_attention(x, x, x, feature_map="taylor2")
    taylor2 = FEATURE_MAPS.index("taylor2")
    require_kernel("cuda", x[..., :16], x, taylor2)
    with pytest.raises(NotImplementedError, match="head_dim 24.*16 channels.*backend='reference'"):
        require_kernel("cuda", x, x, taylor2)
    with pytest.raises(NotImplementedError, match="k of head_dim 12.*multiples of 8"):
        require_kernel("cuda", x[..., :12], x, taylor2)
