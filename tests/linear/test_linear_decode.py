"""Decoding: steps on a pool of states against the whole call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import LIMIT, Case, rms
from torch import Tensor

from tileattn import linear_attention, linear_attention_step

STEP = torch.ops.tileattn.linear_attention_step.default


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("decay", ["", "h", "bth"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_steps_are_the_whole_call(
    normalize: bool, decay: str, backend: str, dtype: torch.dtype
) -> None:
    """A prompt, then tokens one by one; sequences lie anywhere in the pool."""
    case = Case(batch=3, len=20, decay=decay, state=False, options={"normalize": normalize})
    tensors = case.tensors(dtype)
    whole, last = linear_attention(**tensors, **case.options, return_final_state=True)
    constant = tensors["log_decay"] if decay == "h" else None
    prompt = {n: t if t is constant else t[:, :15] for n, t in tensors.items()}
    _, state = linear_attention(**prompt, **case.options, return_final_state=True)
    slots = torch.tensor([4, 0, 2], dtype=torch.int32)

    def pool(part: Tensor) -> Tensor:
        made = torch.full((6, *part.shape[1:]), 7.0)
        made[slots.long()] = part
        return made

    pools = tuple(pool(part) for part in state) if normalize else pool(state)
    for t in range(15, 20):
        token = {n: x if x is constant else x[:, t] for n, x in tensors.items()}
        out = linear_attention_step(**token, state=pools, slots=slots, backend=backend)
        error = rms(out.double() - whole[:, t].double())
        assert out.dtype == dtype and error <= LIMIT[dtype] * rms(whole[:, t].double())
    for actual, expected in zip(
        pools if normalize else [pools], last if normalize else [last], strict=True
    ):
        assert rms(actual[slots.long()] - expected) <= LIMIT[torch.float32] * rms(expected)
        assert bool((actual[[1, 3, 5]] == 7.0).all())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_padding(backend: str) -> None:
    """A padded entry gives 0 and changes no state, whatever it holds."""
    q, k, v = torch.randn(3, 2, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 5)
    q[1], k[1], v[1] = torch.nan, torch.nan, torch.nan
    pool = torch.randn(4, 2, 8, 5)
    before = pool.clone()
    slots = torch.tensor([2, -1, 0], dtype=torch.int32)
    out = linear_attention_step(q, k, v, pool, slots=slots, backend=backend)
    assert not out[1].any() and bool(out.isfinite().all())
    assert torch.equal(pool[[1, 3]], before[[1, 3]]) and not torch.equal(pool[2], before[2])


def test_opcheck_and_compile() -> None:
    q, v, s, z = (
        torch.randn(3, 2, 8),
        torch.randn(3, 2, 5),
        torch.rand(3, 2, 8, 5),
        torch.rand(3, 2, 8),
    )
    slots = torch.tensor([2, -1, 0], dtype=torch.int32)
    for arguments in ((s, None, None, None), (s, z, torch.zeros(2), slots)):
        torch.library.opcheck(STEP, (q, q, v, *arguments, 0.5))
    torch.compiler.reset()
    compiled = torch.compile(linear_attention_step, fullgraph=True, backend="aot_eager")
    pools = s.clone(), s.clone()
    expected = linear_attention_step(q, q, v, pools[0])
    torch.testing.assert_close(compiled(q, q, v, pools[1]), expected)
    torch.testing.assert_close(*pools)


@pytest.mark.parametrize("how", ["function", "operator", "compiled", "reference"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_a_step_tells_autograd_that_states_change(normalize: bool, how: str) -> None:
    """What was saved for a backward is no longer what it was: no silent wrong gradient."""
    q, weight = torch.rand(3, 2, 8), torch.rand(3, 2, 8, requires_grad=True)
    s, z = torch.rand(3, 2, 8, 8), torch.rand(3, 2, 8)

    backend = "reference" if how == "reference" else None

    def step() -> Any:
        state = (s, z) if normalize else s
        if how == "operator":
            return STEP(q, q, q, s, z if normalize else None, None, None, 0.5)
        return linear_attention_step(q, q, q, state, backend=backend)

    saved = (weight * z).sum() if normalize else (weight.unsqueeze(-1) * s).sum()
    if how == "compiled":
        torch.compiler.reset()
        step = torch.compile(step, backend="aot_eager")
    step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


@pytest.mark.parametrize("how", ["cpu", "compiled", "reference", "functional"])
@pytest.mark.parametrize("part", [0, 1])
def test_states_that_require_grad(part: int, how: str) -> None:
    """A backward through the state would not know of the step."""
    q = torch.rand(3, 2, 8)
    backend = "reference" if how == "reference" else "cpu"

    def loss(x: Tensor) -> Tensor:
        state = [torch.rand(3, 2, 8, 8), torch.rand(3, 2, 8)]
        state[part] = state[part] * x
        decay = torch.full((2,), -1.0)
        linear_attention_step(q, q, q, tuple(state), log_decay=decay, backend=backend)  # type: ignore[arg-type]
        return state[part].sum()

    with torch.no_grad():
        loss(torch.ones((), requires_grad=True))
    call = loss
    if how == "compiled":
        torch.compiler.reset()
        call = torch.compile(loss, backend="aot_eager")
    if how == "functional":
        call = torch.func.grad(loss)
    with pytest.raises(ValueError, match="state requires grad"):
        call(torch.ones((), requires_grad=True))


def good(**changes: Any) -> dict[str, Any]:
    q, k, v = torch.zeros(3, 4, 16), torch.zeros(3, 2, 16), torch.zeros(3, 2, 8)
    return {"q": q, "k": k, "v": v, "state": torch.zeros(3, 4, 16, 8)} | changes


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": (good(q=torch.zeros(3, 1, 4, 16)), ValueError, r"q is .*\[batch, heads, head_dim\]"),
    "state": (good(state=torch.zeros(3, 4, 8, 16)), ValueError, "state has shape"),
    "state dtype": (good(state=torch.zeros(3, 4, 16, 8).half()), ValueError, "state has dtype"),
    "state z": (
        good(state=(torch.zeros(3, 4, 16, 8),)),
        TypeError,
        r"state is a tuple of 1; .*pair \(S, z\)",
    ),
    "state strides": (
        good(state=torch.zeros(3, 4, 8, 16).transpose(2, 3)),
        ValueError,
        "state is not contiguous",
    ),
    "pool without slots": (good(state=torch.zeros(5, 4, 16, 8)), ValueError, "state has shape"),
    "slots dtype": (good(slots=torch.zeros(3)), TypeError, "slots has dtype torch.float32"),
    "slots shape": (good(slots=torch.zeros(2).int()), ValueError, r"slots has shape \[2\]"),
    "log_decay": (good(log_decay=torch.ones(4)), ValueError, "log_decay has values up to 1"),
    "log_decay shape": (good(log_decay=torch.zeros(3)), ValueError, "log_decay has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str) -> None:
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        linear_attention_step(**arguments)
    linear_attention_step(**good())
