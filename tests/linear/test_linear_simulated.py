"""The CUDA kernels of linear attention on the PTX simulator: what only a simulator can vary.

The results themselves are tested where ``linear_device`` is "simulated" in the other files.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import LIMIT, Case, check, compare, rms, run, truth
from sim_report import kernel_name
from simulator import Simulator
from test_linear import cases

from tileattn import linear_attention, linear_attention_step

# Three chunks of every kernel and no whole one at the end, key heads that are shared.
LONG: dict[str, Any] = {"batch": 1, "len": 147, "heads": 2, "heads_kv": 1, "dim": 64, "dim_v": 64}
SEGMENTS: dict[str, Any] = LONG | {"len": 401}
NORMALIZE, TAYLOR2 = {"normalize": True}, {"feature_map": "taylor2"}
NARROW = {"dim": 16, "dim_v": 40}
CASES = {
    "plain": Case(**LONG),
    "decay": Case(**LONG, decay="bth"),
    "normalized": Case(**LONG, decay="bth", options=NORMALIZE),
    "segments": Case(**SEGMENTS, decay="bth", options=NORMALIZE),
    "bidirectional": Case(**SEGMENTS, options={"causal": False} | NORMALIZE),
    "packed": Case(seqlens=(3, 0, 147, 64), decay="bth", dim=64, dim_v=64, heads=2, heads_kv=1),
    "wide": Case(**LONG | {"dim": 128, "dim_v": 128}, decay="bth", options=NORMALIZE),
    "narrow_values": Case(**LONG | {"dim": 128, "dim_v": 40}, decay="h"),
    "taylor2": Case(**LONG | NARROW, decay="bth", options=TAYLOR2 | NORMALIZE),
    "taylor2_segments": Case(**SEGMENTS | NARROW, decay="bth", options=TAYLOR2 | NORMALIZE),
    "taylor2_bidirectional": Case(**SEGMENTS | NARROW, options={"causal": False} | TAYLOR2),
}


@pytest.mark.parametrize("name", CASES)
def test_no_order_of_warps_and_copies_changes_the_result(name: str, simulator: Simulator) -> None:
    """Copies land as late or as early as they may, and warps run in several orders."""
    results = []
    for seed, arrival in ((1, "late"), (2, "early"), (3, "late"), (4, "early")):
        options = {"seed": seed, "async_": arrival, "capability": 80}
        with simulator.kernels(), simulator.configured(**options):
            results.append(check(CASES[name], torch.float16))
    for result in results[1:]:
        for output, value in result.items():
            assert torch.equal(value, results[0][output]), output


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("strength", [0.0, 8.0])
@pytest.mark.parametrize("kind", [{}, NARROW | {"options": TAYLOR2}], ids=["plain", "taylor2"])
def test_lengths_and_decays(
    length: int, strength: float, kind: dict[str, Any], simulator: Simulator
) -> None:
    case = Case(**LONG | kind | {"len": length}, decay="bth", strength=strength)
    with simulator.kernels():
        check(case, torch.bfloat16)


@pytest.mark.parametrize(
    "name", ["segments", "bidirectional", "taylor2_segments", "taylor2_bidirectional"]
)
@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_any_number_of_segments(name: str, multiprocessors: int, simulator: Simulator) -> None:
    options = {"multiprocessors": multiprocessors, "capability": 80}
    with simulator.kernels(), simulator.configured(**options):
        check(CASES[name], torch.bfloat16)


def _launches(simulator: Simulator) -> dict[str, int]:
    return {kernel_name(c["kernel"]): c["launches"] for c in simulator.counters()}


def _kernels_of(simulator: Simulator, case: Case) -> set[str]:
    with simulator.kernels(), simulator.configured(stats="collect", capability=80):
        simulator.counters()
        linear_attention(**_arguments(case.tensors(torch.float16)), **case.options)
        return set(_launches(simulator))


def _arguments(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    arguments: dict[str, Any] = {n: t for n, t in tensors.items() if n not in ("s", "z")}
    if "s" in tensors:
        s, z = tensors["s"], tensors.get("z")
        arguments["initial_state"] = s if z is None else (s, z)
    return arguments


def test_few_heads_are_cut_into_segments(simulator: Simulator) -> None:
    passed = {"segment_state_kernel", "pass_states_kernel", "chunk_scan_kernel"}
    assert _kernels_of(simulator, CASES["decay"]) == {"chunk_scan_kernel"}
    assert _kernels_of(simulator, CASES["segments"]) == passed
    assert _kernels_of(simulator, CASES["bidirectional"]) == passed
    passed_with_taylor2 = passed - {"chunk_scan_kernel"} | {"taylor2_scan_kernel"}
    assert _kernels_of(simulator, CASES["taylor2_segments"]) == passed_with_taylor2
    with simulator.configured(multiprocessors=1):
        assert _kernels_of(simulator, CASES["segments"]) == {"chunk_scan_kernel"}


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("decay", ["chunk_scan_kernel", "sweep_kernel"]),
        ("taylor2", ["taylor2_scan_kernel", "taylor2_sweep_kernel"]),
    ],
)
def test_backward_is_two_sweeps(name: str, kernels: list[str], simulator: Simulator) -> None:
    case = CASES[name]
    tensors = {n: t.requires_grad_() for n, t in case.tensors(torch.float16).items()}
    with simulator.kernels(), simulator.configured(stats="collect", capability=80):
        out = linear_attention(**_arguments(tensors), **case.options)
        simulator.counters()
        torch.autograd.grad(out.sum(), list(tensors.values()))
        launches = _launches(simulator)
    sweeps = {n: count for n, count in launches.items() if "scan" in n or "sweep" in n}
    assert sweeps == dict.fromkeys(kernels, 1)


def test_calls_that_pass_the_state_are_one(simulator: Simulator) -> None:
    tensors = CASES["normalized"].tensors(torch.float16)
    tokens = {n: t for n, t in tensors.items() if n not in ("s", "z")}
    state: Any = (tensors["s"], tensors["z"])
    outs = []
    with simulator.kernels():
        whole, last = linear_attention(
            **tokens, **NORMALIZE, initial_state=state, return_final_state=True
        )
        for begin, end in ((0, 64), (64, 65), (65, 147)):
            part = {name: tensor[:, begin:end] for name, tensor in tokens.items()}
            out, state = linear_attention(
                **part, **NORMALIZE, initial_state=state, return_final_state=True
            )
            outs.append(out)
    for actual, expected in ((torch.cat(outs, 1), whole), *zip(state, last, strict=True)):
        assert rms((actual - expected).double()) <= LIMIT[torch.float16] * rms(expected.double())


@pytest.mark.parametrize("decay", ["", "bth"])
@pytest.mark.parametrize("kind", [{}, NARROW | {"options": TAYLOR2}], ids=["plain", "taylor2"])
def test_nan_of_one_sequence_stays_there(
    decay: str, kind: dict[str, Any], simulator: Simulator
) -> None:
    """What lies behind the end of a sequence counts as 0, whatever the next one holds."""
    shape = {"seqlens": (40, 30, 70), "tail": 9, "heads": 2, "heads_kv": 1, "state": False}
    case = Case(**shape | kind, decay=decay)
    clean = case.tensors(torch.float16)
    dirty = {name: tensor.clone() for name, tensor in clean.items()}
    for name in ("q", "k", "v"):
        dirty[name][:, 40:70] = torch.nan
        dirty[name][:, 140:] = torch.nan
    with simulator.kernels():
        expected, actual = (
            run(linear_attention, t, case.options, exact=False) for t in (clean, dirty)
        )
    for name in ("out", "dq", "dk", "dv"):
        for rows in (slice(40), slice(70, None)):
            assert torch.equal(actual[name][:, rows], expected[name][:, rows]), name
    assert bool(actual["out"][:, 40:70].isnan().all())
    assert torch.equal(actual["s"][[0, 2]], expected["s"][[0, 2]])


@pytest.mark.parametrize("offsets", [[-5, 1000, 7], [150, 20, 200], [190, 199, 200]])
@pytest.mark.parametrize("dim", [32, 16], ids=["plain", "taylor2"])
def test_offsets_outside_of_the_tokens_are_clamped(
    offsets: list[int], dim: int, simulator: Simulator
) -> None:
    """No value of cu_seqlens on the device can make a kernel read or write elsewhere.

    The simulator knows which memory belongs to the call and reports everything else.
    """
    case = Case(seqlens=(120, 80), heads=2, heads_kv=1, dim=dim, decay="bth")
    tensors = case.tensors(torch.half)
    q, k, v, decay = (tensors[name] for name in ("q", "k", "v", "log_decay"))
    tail = (decay, None, None, torch.tensor(offsets, dtype=torch.int32), 0.1, True, False)
    ops = torch.ops.tileattn
    with simulator.kernels():
        out, *_ = ops.linear_attention_forward(q, k, v, *tail, dim == 16)
        ops.linear_attention_backward(out, None, None, q, k, v, None, None, *tail, True, dim == 16)


@pytest.mark.parametrize("kind", [{}, NARROW | {"options": TAYLOR2}], ids=["plain", "taylor2"])
def test_long_sums_keep_their_precision(kind: dict[str, Any], simulator: Simulator) -> None:
    """The decay's gradient is a chain of differences over all chunks of a segment."""
    fields = LONG | {"len": 1200, "options": {}} | kind
    fields["options"] = fields["options"] | NORMALIZE
    case = Case(**fields, decay="bth", strength=0.02)
    tensors = case.tensors(torch.bfloat16)
    with simulator.kernels(), simulator.configured(multiprocessors=1, capability=80):
        actual = run(linear_attention, tensors, case.options, exact=False)
    compare(actual, truth(tensors, case.options), torch.bfloat16)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("dim", [24, 128, 273])
def test_step(dim: int, normalize: bool, simulator: Simulator) -> None:
    """As on the CPU; a padded entry gives 0 and changes no state, whatever it holds."""
    case = Case(
        batch=3, len=1, dim=dim, dim_v=dim - 7, decay="bth", options={"normalize": normalize}
    )
    token = {n: t[:, 0] for n, t in case.tensors(torch.float16).items() if n not in ("s", "z")}
    token["k"][1] = torch.nan
    slots = torch.tensor([4, -1, 2], dtype=torch.int32)
    s, z = torch.randn(6, 4, dim, dim - 7), torch.rand(6, 4, dim)
    pools = [(s.clone(), z.clone()) for _ in range(2)]
    outs = [
        linear_attention_step(**token, state=pools[0] if normalize else pools[0][0], slots=slots)
    ]
    with simulator.kernels():
        state = pools[1] if normalize else pools[1][0]
        outs.append(linear_attention_step(**token, state=state, slots=slots))
    assert rms((outs[1] - outs[0]).double()) <= LIMIT[torch.float16] * rms(outs[0].double())
    assert not outs[1][1].any()
    for actual, expected, before in zip(*reversed(pools), (s, z), strict=True):
        assert rms((actual - expected).double()) <= LIMIT[torch.float32] * rms(expected.double())
        assert torch.equal(actual[[0, 1, 3, 5]], before[[0, 1, 3, 5]])


@given(case=cases(step=8), seed=st.integers(0, 3))
@settings(max_examples=15)
def test_random_cases(case: Case, seed: int, simulator: Simulator) -> None:
    with simulator.kernels():
        check(case, torch.float16, seed=seed)
