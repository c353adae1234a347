"""The CUDA kernels on the PTX simulator: what only a simulator can vary.

The results themselves are tested where ``device`` is "simulated" in the other files.
"""

from __future__ import annotations

import pytest
import torch
from cases import Case, check
from sim_report import kernel_name
from simulator import Simulator, built_dims

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
    **{
        f"dim_{dim}": Case(**LONG | {"dim": dim}, options={"causal": True})
        for dim in built_dims("backward")
    },
}
# Several query tiles and rounds through the rings of every Hopper kernel.
HOPPER = {"batch": 1, "len_q": 331, "len_k": 523, "heads": 2, "heads_kv": 1}
EVERYTHING = {"bias": "hq", "alibi": "h", "sinks": True}
HOPPER_CASES = {
    "dense": Case(**HOPPER),
    "causal": Case(**HOPPER, options={"causal": True}),
    "window": Case(**HOPPER, options={"window": (90, 20), "sink_tokens": 5}),
    "everything": Case(
        **HOPPER, **EVERYTHING, options={"softcap": 5.0, "causal": True, "window": (150, 0)}
    ),
    "packed": Case(
        seqlens=((3, 17), (170, 5), (0, 4), (9, 0), (129, 265)),
        tail=(5, 7),
        heads=4,
        heads_kv=2,
        options={"causal": True},
    ),
    "empty_rows": Case(batch=2, len_q=300, len_k=40, heads=2, options={"causal": True}),
}
HOPPER_DIMS = pytest.mark.parametrize("dim", built_dims("forward", 90))
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
        options = {"seed": seed, "async_": arrival, "capability": 80}
        with simulator.kernels(), simulator.configured(**options):
            results.append(check(case, torch.float16, "cpu"))
    ordered = [n for n in results[0] if deterministic or n in ("out", "lse", "dk", "dv")]
    for result in results[1:]:
        for output in ordered:
            assert torch.equal(result[output], results[0][output]), output


@DETERMINISTIC
@pytest.mark.parametrize("dim", built_dims("backward", 86))
def test_kernels_of_small_devices(dim: int, deterministic: bool, simulator: Simulator) -> None:
    """sm_86 and sm_89 grant a block 99 KiB of shared memory, and have kernels of their own."""
    case = Case(**LONG | {"dim": dim}, options={"causal": True, "deterministic": deterministic})
    for seed, arrival in ((1, "late"), (2, "early"), (3, "late")):
        device = {"capability": 86, "seed": seed, "async_": arrival}
        with simulator.kernels(), simulator.configured(**device):
            check(case, torch.float16, "cpu")


@pytest.mark.parametrize("name", ["everything", "one_stage", "split_keys"])
def test_one_multiprocessor(name: str, simulator: Simulator) -> None:
    """The keys are never split: one block walks over all of them."""
    with simulator.kernels(), simulator.configured(multiprocessors=1, capability=80):
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
        results = ops.attention_forward(q, k, v, None, None, None, *tail, True)
        ops.attention_backward(q, None, q, k, v, *results, None, None, None, *tail, False)


@HOPPER_DIMS
@pytest.mark.parametrize("name", HOPPER_CASES)
def test_no_order_changes_the_result_on_hopper(name: str, dim: int, simulator: Simulator) -> None:
    """Nor do the number of blocks, and by that what each has to do, and in which order."""
    case = Case(**vars(HOPPER_CASES[name]) | {"dim": dim})
    results = []
    for blocks, seed, arrival in ((2, 1, "late"), (2, 2, "early"), (1, 3, "late"), (3, 4, "early")):
        options = {"multiprocessors": blocks, "seed": seed, "async_": arrival}
        with simulator.kernels(), simulator.configured(capability=90, **options):
            results.append(check(case, torch.float16, "cpu", with_grad=False))
    for result in results[1:]:
        for output, value in results[0].items():
            assert torch.equal(result[output], value), output


@pytest.mark.parametrize("waits_for", ["wgmma", "load", "store"])
def test_each_kind_of_late_work_on_hopper(waits_for: str, simulator: Simulator) -> None:
    """Products, loads and stores of tiles take effect at their waits, the others at once."""
    case = Case(**HOPPER, dim=128, options={"causal": True})
    options = {"multiprocessors": 2, "capability": 90, "async_": waits_for}
    with simulator.kernels(), simulator.configured(**options):
        check(case, torch.bfloat16, "cpu", with_grad=False)


def test_nan_of_one_sequence_stays_there(simulator: Simulator) -> None:
    """A tile that a sequence ends in holds zeros behind the end, not the next sequence."""
    case = Case(seqlens=((40, 50), (30, 70), (140, 150)), heads=2, heads_kv=1, dim=128)
    clean = case.tensors(torch.float16, "cpu")
    dirty = {name: tensor.clone() for name, tensor in clean.items()}
    for name, rows in (("q", slice(40, 70)), ("k", slice(50, 120)), ("v", slice(50, 120))):
        dirty[name][rows] = torch.nan
    for capability in (80, 90):
        with simulator.kernels(), simulator.configured(capability=capability):
            expected, actual = (attention(**t, return_lse=True) for t in (clean, dirty))
        for whole, part in zip(expected, actual, strict=True):
            assert torch.equal(whole[:40], part[:40]) and torch.equal(whole[70:], part[70:])
            assert bool(part[40:70].isnan().all())


def _kernels_of(simulator: Simulator, case: Case, **tensors: torch.Tensor) -> set[str]:
    """The names of the kernels that a forward launches."""
    given = case.tensors(torch.float16, "cpu") | tensors
    with simulator.kernels(), simulator.configured(stats="collect"):
        simulator.counters()
        attention(**given, **case.options)
        return {kernel_name(counters["kernel"]) for counters in simulator.counters()}


def test_the_kernel_that_the_device_calls_for_is_chosen(simulator: Simulator) -> None:
    case, few_queries = Case(dim=64), Case(batch=1, len_q=3, len_k=2000, dim=64)
    for capability in (80, 86, 89, 90):
        with simulator.configured(capability=capability):
            expected = "forward_sm90_kernel" if capability == 90 else "forward_kernel"
            assert _kernels_of(simulator, case) == {expected}
            # Where keys are split, everywhere.
            assert _kernels_of(simulator, few_queries) == {"forward_kernel", "combine_kernel"}
    # What the copy engine cannot be told of.
    one_key = torch.randn(2, 1, 2, 64).half().expand(2, case.len_k, 2, 64)
    with simulator.configured(capability=90):
        assert _kernels_of(simulator, case, k=one_key) == {"forward_kernel"}


def test_the_checks_are_on(simulator: Simulator) -> None:
    """A read of memory that the call does not own stops the kernel."""
    tensors = Case(dim=64).tensors(torch.half, "cpu")
    tensors["k"].untyped_storage().resize_(0)  # a tensor without memory
    with simulator.kernels(), pytest.raises(RuntimeError, match="out of bounds"):
        attention(tensors["q"], tensors["k"], tensors["v"])
