"""The CUDA kernels on the PTX simulator: what only a simulator can vary.

The results themselves are tested where ``device`` is "simulated" in the other files.
"""

from __future__ import annotations

import pytest
import torch
from cases import Case, check
from simulator import Simulator

from tileattn import attention

# More than one tile of queries and of keys in every kernel, and no tile divides them.
LONG = {"batch": 1, "len_q": 131, "len_k": 203, "heads": 2, "heads_kv": 1, "dim": 64}
CASES = {
    "everything": Case(
        **LONG,
        bias="hq",
        alibi="h",
        sinks=True,
        options={"softcap": 5.0, "causal": True, "window": (50, 0), "sink_tokens": 3},
    ),
    "one_stage": Case(**LONG | {"dim": 256}),
    "packed": Case(seqlens=((3, 17), (70, 5), (0, 4), (129, 65)), heads=2, heads_kv=1, dim=96),
    "split_keys": Case(batch=1, len_q=3, len_k=700, dim=64),
}
HOPPER = {
    "dense": Case(**LONG | {"heads": 4, "heads_kv": 2}),
    "causal": Case(**LONG | {"len_q": 300, "len_k": 411, "dim": 128}, options={"causal": True}),
    "wide": Case(**LONG | {"len_k": 411, "dim": 256}, options={"causal": True}),
    "window": Case(**LONG | {"len_k": 500}, options={"window": (90, 3), "sink_tokens": 70}),
    "value_dim": Case(**LONG | {"dim": 40}, dim_v=128),
    "empty_rows": Case(**LONG | {"len_q": 300, "len_k": 100}, options={"causal": True}),
    "everything": CASES["everything"],
    "packed": Case(seqlens=((3, 17), (270, 205), (0, 4), (129, 65)), tail=(9, 5), dim=128),
}
DETERMINISTIC = pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "fixed"])


@DETERMINISTIC
@pytest.mark.parametrize("name", CASES)
def test_no_order_of_warps_and_copies_changes_the_result(
    name: str, deterministic: bool, simulator: Simulator
) -> None:
    """Copies land as late or as early as they may, and warps run in several orders."""
    options = CASES[name].options | {"deterministic": deterministic}
    case = Case(**vars(CASES[name]) | {"options": options})
    results = []
    for seed, arrival in ((1, "late"), (2, "early"), (3, "late"), (4, "early")):
        with simulator.kernels(), simulator.configured(seed=seed, async_=arrival):
            results.append(check(case, torch.float16, "cpu"))
    ordered = [n for n in results[0] if deterministic or n in ("out", "lse", "dk", "dv")]
    for result in results[1:]:
        for output in ordered:
            assert torch.equal(result[output], results[0][output]), output


@pytest.mark.parametrize("multiprocessors", [1, 3])
@pytest.mark.parametrize("name", HOPPER)
def test_hopper_forward(name: str, multiprocessors: int, simulator: Simulator) -> None:
    """Bit-equal whenever TMA and wgmma complete, in any order of warps."""
    results = []
    for seed, arrival in ((1, "late"), (2, "early"), (3, "wgmma"), (4, "load,store")):
        device = {"capability": 90, "multiprocessors": multiprocessors, "stats": "collect"}
        with simulator.kernels(), simulator.configured(seed=seed, async_=arrival, **device):
            results.append(check(HOPPER[name], torch.float16, "cpu", with_grad=False))
            (kernel,) = simulator.counters()
            assert "forward_sm90_kernel" in kernel["kernel"]
    for result in results[1:]:
        for output, value in result.items():
            assert torch.equal(value, results[0][output]), output


@DETERMINISTIC
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 192, 256])
def test_kernels_of_small_devices(dim: int, deterministic: bool, simulator: Simulator) -> None:
    """sm_86 and sm_89 grant a block 99 KiB of shared memory, and have kernels of their own."""
    case = Case(**LONG | {"dim": dim}, options={"causal": True, "deterministic": deterministic})
    with simulator.kernels(), simulator.configured(capability=86):
        check(case, torch.float16, "cpu")


@pytest.mark.parametrize("name", ["everything", "one_stage", "split_keys"])
def test_one_multiprocessor(name: str, simulator: Simulator) -> None:
    """The keys are never split: one block walks over all of them."""
    with simulator.kernels(), simulator.configured(multiprocessors=1):
        check(CASES[name], torch.bfloat16, "cpu", with_grad=False)


@DETERMINISTIC
@pytest.mark.parametrize("offsets", [[-5, 1000, 7], [150, 20, 200], [190, 199, 200]])
def test_offsets_outside_of_the_tokens_are_clamped(
    offsets: list[int], deterministic: bool, simulator: Simulator
) -> None:
    """No value of cu_seqlens on the device can make a kernel read or write elsewhere.

    The simulator knows which memory belongs to the call and reports everything else.
    """
    tensors = Case(seqlens=((200, 200),), heads=1, heads_kv=1, dim=64).tensors(torch.half, "cpu")
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    cu = torch.tensor(offsets, dtype=torch.int32)
    tail = (cu, cu, 0.1, 0.0, -1, -1, 0, False, deterministic)
    ops = torch.ops.tileattn
    with simulator.kernels():
        out, lse = ops.attention_forward(q, k, v, None, None, None, *tail)
        ops.attention_backward(q, None, q, k, v, out, lse, None, None, None, *tail, False)


def test_the_checks_are_on(simulator: Simulator) -> None:
    """A read of memory that the call does not own stops the kernel."""
    tensors = Case(dim=64).tensors(torch.half, "cpu")
    tensors["k"].untyped_storage().resize_(0)  # a tensor without memory
    with simulator.kernels(), pytest.raises(RuntimeError, match="out of bounds"):
        attention(tensors["q"], tensors["k"], tensors["v"])
