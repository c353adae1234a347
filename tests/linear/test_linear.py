"""The kernels of linear attention against the recurrence, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from linear_cases import LIMIT, Case, check, rms, run
from torch import Tensor

from tileattn import linear_attention, segment_state

CASES = {
    "plain": Case(),
    "no_state": Case(state=False),
    "mha": Case(heads=3, heads_kv=3),
    "mqa": Case(heads=6, heads_kv=1, decay="h"),
    "constant_decay": Case(decay="h"),
    "decay": Case(decay="bth"),
    "strong_decay": Case(decay="bth", strength=8.0),
    "strong_constant_decay": Case(decay="h", strength=8.0),
    "zero_decay": Case(decay="bth", strength=0.0),
    "normalized": Case(options={"normalize": True}),
    "normalized_decay": Case(decay="bth", options={"normalize": True}),
    "bidirectional": Case(options={"causal": False}),
    "bidirectional_normalized": Case(options={"causal": False, "normalize": True}),
    "bidirectional_no_state": Case(state=False, options={"causal": False}),
    "scale": Case(options={"scale": -3.0}),
    # The state is beyond what float16 holds.
    "large_state": Case(
        batch=1, len=300, heads=2, heads_kv=1, gain=2000.0, options={"scale": 2**-7}
    ),
    "one_token": Case(len=1, decay="bth"),
    "one_chunk": Case(len=48, decay="bth"),
    "one_more": Case(len=49, decay="bth"),
    "long": Case(batch=1, len=500, heads=2, heads_kv=1, decay="bth"),
    "few_heads": Case(batch=1, len=500, heads=1, heads_kv=1, decay="bth"),
    "few_heads_normalized": Case(
        batch=1, len=500, heads=1, heads_kv=1, decay="h", options={"normalize": True}
    ),
    "few_heads_bidirectional": Case(
        batch=1, len=500, heads=1, heads_kv=1, options={"causal": False, "normalize": True}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, dtype: torch.dtype, linear_device: str) -> None:
    check(CASES[name], dtype, linear_device)


NORMALIZE = pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
WIDE = Case(batch=1, len=63, heads=2, heads_kv=1, decay="bth")


@pytest.mark.parametrize(
    ("dim", "dim_v"), [(8, 8), (32, 32), (64, 128), (128, 64), (72, 120), (128, 128)]
)
@NORMALIZE
def test_head_dims(
    dim: int, dim_v: int, normalize: bool, dtype: torch.dtype, linear_device: str
) -> None:
    dims = {"dim": dim, "dim_v": dim_v, "options": {"normalize": normalize}}
    check(Case(**{**vars(WIDE), **dims}), dtype, linear_device)


@pytest.mark.parametrize(("dim", "dim_v"), [(3, 1), (100, 20), (256, 40), (273, 17), (20, 300)])
@NORMALIZE
def test_any_head_dim(dim: int, dim_v: int, normalize: bool, dtype: torch.dtype) -> None:
    dims = {"dim": dim, "dim_v": dim_v, "options": {"normalize": normalize}}
    check(Case(**{**vars(WIDE), **dims}), dtype)


PACKED = {
    "even": Case(seqlens=(60, 60)),
    "odd": Case(seqlens=(3, 70, 1, 133)),
    "empty_sequences": Case(seqlens=(0, 12, 0, 0, 50, 0)),
    "all_empty": Case(seqlens=(0, 0)),
    "tail": Case(seqlens=(20, 9), tail=70),
    "few_heads": Case(seqlens=(500,), heads=1, heads_kv=1, tail=3),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": True}, {"causal": False}],
    ids=["causal", "normalized", "bidirectional"],
)
def test_packed(
    name: str, options: dict[str, bool], dtype: torch.dtype, linear_device: str
) -> None:
    decay = "bth" if options.get("causal", True) else ""
    check(Case(**{**vars(PACKED[name]), "options": options, "decay": decay}), dtype, linear_device)


@pytest.mark.parametrize("shape", [{"batch": 0}, {"len": 0}], ids=["no_batch", "no_tokens"])
@pytest.mark.parametrize("causal", [True, False])
def test_empty(shape: dict[str, int], causal: bool, dtype: torch.dtype, linear_device: str) -> None:
    """Without tokens the state goes through unchanged, and so does its gradient."""
    case = Case(**shape, decay="h" if causal else "", options={"causal": causal})
    results = check(case, dtype, linear_device)
    assert torch.equal(results["s"].cpu(), case.tensors(dtype)["s"])
    if not causal or case.batch == 0:
        assert results["out"].numel() == 0


@pytest.mark.parametrize("cuts", [[7], [48], [48, 49, 96], [1, 2, 112]])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_calls_that_pass_the_state_are_one(cuts: list[int], normalize: bool) -> None:
    """Wherever the cut is, also inside of a chunk."""
    tensors = Case(decay="bth", options={"normalize": normalize}, state=False).tensors(
        torch.float32
    )
    whole, last = linear_attention(**tensors, normalize=normalize, return_final_state=True)
    state, outs = None, []
    for begin, end in zip([0, *cuts], [*cuts, 113], strict=True):
        part = {name: tensor[:, begin:end] for name, tensor in tensors.items()}
        out, state = linear_attention(
            **part, normalize=normalize, initial_state=state, return_final_state=True
        )
        outs.append(out)
    pairs = [(torch.cat(outs, 1), whole)]
    pairs += zip(state, last, strict=True) if normalize else [(state, last)]
    for actual, expected in pairs:
        assert rms(actual - expected) <= LIMIT[torch.float32] * rms(expected)


@pytest.mark.parametrize("case", [CASES["decay"], CASES["few_heads"], PACKED["odd"]])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_segment_state(case: Case, normalize: bool, dtype: torch.dtype, linear_device: str) -> None:
    """It is the final state, and differentiable like it."""
    case = Case(**{**vars(case), "decay": "bth", "options": {"normalize": normalize}})
    tensors = {name: t.to(linear_device) for name, t in case.tensors(dtype).items()}

    def state_only(q: Tensor, **rest: object) -> tuple[Tensor, object]:
        rest.pop("return_final_state")
        return q * 0, segment_state(**rest)  # type: ignore[arg-type]

    def whole(q: Tensor, **rest: object) -> tuple[Tensor, object]:
        _, state = linear_attention(q, **rest)  # type: ignore[call-overload]
        return q * 0, state

    results = [run(f, tensors, case.options, exact=False) for f in (state_only, whole)]
    for name, expected in results[1].items():
        error = rms(results[0][name].double() - expected.double())
        assert error <= LIMIT[dtype] * rms(expected.double()), name


def test_future_tokens_do_not_matter(dtype: torch.dtype, linear_device: str) -> None:
    """Not even keys that are NaN, in the same chunk."""
    made = Case(decay="bth", state=False).tensors(dtype)
    tensors = {name: t.to(linear_device) for name, t in made.items()}
    expected = linear_attention(**tensors)
    for name, poison in (("k", torch.nan), ("v", 1e4)):
        poisoned = tensors | {name: tensors[name].clone()}
        poisoned[name][:, 20:] = poison
        assert torch.equal(linear_attention(**poisoned)[:, :20], expected[:, :20]), name


def test_a_full_reset() -> None:
    """log_decay = -inf forgets everything before, and is differentiable."""
    tensors = Case(decay="bth", state=False).tensors(torch.float32)
    tensors["log_decay"][:, 30] = -torch.inf
    results = run(linear_attention, tensors, {}, exact=False)
    late = {name: tensor[:, 30:] for name, tensor in tensors.items()}
    expected = linear_attention(**late)
    assert rms(results["out"][:, 30:] - expected) <= LIMIT[torch.float32] * rms(expected)
    assert all(bool(t.isfinite().all()) for t in results.values())
    assert not results["dlog_decay"][:, 30].any()


def test_small_decays_after_a_strong_one() -> None:
    """Weights come from differences of sums of log_decay, which must not lose the small ones."""
    case = Case(batch=1, len=48, heads=1, heads_kv=1, decay="bth", strength=0.01)
    tensors = case.tensors(torch.float32)
    tensors["log_decay"][:, 3] = -5000.0
    exact = {n: t.double() for n, t in tensors.items()}
    exact["initial_state"], tensors["initial_state"] = exact.pop("s"), tensors.pop("s")
    actual = linear_attention(**tensors).double()
    expected = linear_attention(**exact, backend="reference")
    assert rms(actual - expected) <= 1e-6 * rms(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_inputs(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype, linear_device: str
) -> None:
    """Bit-equal to the call on contiguous tensors."""
    made = Case(heads=4, heads_kv=4, decay="bth", options={}).tensors(dtype)
    tensors = {name: t.to(linear_device) for name, t in made.items()}
    plain = run(linear_attention, tensors, {}, exact=False)
    strided = {n: layout(t) if n in ("q", "k", "v", "s") else t for n, t in tensors.items()}
    wide = torch.full((2, 113, 9), torch.nan, device=linear_device)
    wide[..., ::2][..., :4] = tensors["log_decay"]
    strided["log_decay"] = wide[..., ::2][..., :4]
    for name, value in run(linear_attention, strided, {}, exact=False).items():
        assert torch.equal(value, plain[name]), name


def test_expanded_inputs(dtype: torch.dtype, linear_device: str) -> None:
    """One decay and one key for all (stride 0), and an expanded incoming gradient."""
    made = Case(state=False, decay="h").tensors(dtype)
    tensors = {name: t.to(linear_device) for name, t in made.items()}
    decay = tensors["log_decay"]
    whole = linear_attention(**tensors)
    tensors["log_decay"] = decay.expand(2, 113, 4)
    assert torch.equal(linear_attention(**tensors), whole)
    q = tensors["q"].requires_grad_()
    (one,) = torch.autograd.grad(linear_attention(**tensors).sum(), q)
    arriving = torch.ones(2, 113, 4, 24, dtype=dtype, device=linear_device)
    (other,) = torch.autograd.grad(linear_attention(**tensors), q, arriving)
    assert torch.equal(one, other)


def test_rows_without_a_denominator() -> None:
    """relu features of a query may all be 0: out and gradients are 0, not NaN."""
    q, k, v = torch.rand(1, 9, 2, 8), torch.rand(1, 9, 2, 8), torch.randn(1, 9, 2, 8)
    q[:, 4] = 0
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = linear_attention(*leaves, normalize=True)
    assert not out[:, 4].any() and bool(out.isfinite().all())
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("name", ["decay", "few_heads", "mqa"])
def test_bit_equal_from_run_to_run(name: str) -> None:
    tensors = CASES[name].tensors(torch.float32)
    first = run(linear_attention, tensors, {}, exact=False)
    for _ in range(3):
        for key, value in run(linear_attention, tensors, {}, exact=False).items():
            assert torch.equal(value, first[key]), key


@st.composite
def cases(draw: st.DrawFn, step: int = 1) -> Case:
    """Head dims are multiples of ``step``."""
    heads_kv = draw(st.integers(1, 3))
    causal, normalize = draw(st.booleans()), draw(st.booleans())
    lengths = st.integers(0, 70)
    seqlens = draw(st.one_of(st.just([]), st.lists(lengths, min_size=1, max_size=4)))
    return Case(
        batch=draw(st.integers(0, 3)),
        len=draw(st.integers(0, 200)),
        heads_kv=heads_kv,
        heads=heads_kv * draw(st.integers(1, 3)),
        dim=step * draw(st.integers(-(-4 // step), 70 // step)),
        dim_v=step * draw(st.integers(1, 70 // step)),
        decay=draw(st.sampled_from(["", "h", "bth"])) if causal else "",
        # Where weights add to 1 and one token has nearly all, gradients cancel to rounding errors.
        strength=draw(st.sampled_from([0.01, 0.5] if normalize else [0.01, 0.5, 8.0])),
        # A mean over few tokens hardly depends on q: a gradient of 0 has no relative error.
        state=normalize or draw(st.booleans()),
        seqlens=tuple(seqlens),
        tail=draw(st.integers(0, 5)),
        options={"causal": causal, "normalize": normalize},
    )


@given(case=cases(), seed=st.integers(0, 3))
@settings(max_examples=15)
def test_random_cases(case: Case, seed: int, dtype: torch.dtype) -> None:
    check(case, dtype, seed=seed)
