"""A NaN or an infinity in a token of linear attention: what comes before it stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import Case
from nonfinite import assert_reached, assert_same, poisoned, positions
from torch import Tensor

from tileattn import linear_attention, linear_attention_step, segment_state, use_backend

Tensors = dict[str, Tensor]

SHAPE = Case(batch=1, len=107, heads=2, heads_kv=1, dim=8, dim_v=8)
CASES = {
    "plain": SHAPE,
    "decay": Case(**{**vars(SHAPE), "decay": "bth", "strength": 0.3}),
    "normalized": Case(**{**vars(SHAPE), "decay": "h", "options": {"normalize": True}}),
    "taylor2": Case(**{**vars(SHAPE), "dim": 4, "options": {"feature_map": "taylor2"}}),
    "packed": Case(**{**vars(SHAPE), "seqlens": (50, 0, 9, 48), "tail": 0, "decay": "bth"}),
}


def sequences(case: Case) -> Tensor:
    """The sequence of each token."""
    lengths = torch.tensor(case.seqlens or (case.len,))
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def dependents(case: Case, poison: str, t: int) -> dict[str, Tensor]:
    """For each result, bool [tokens] or [sequences]: what depends on token t."""
    owner = sequences(case)
    same, at = owner == owner[t], torch.arange(len(owner))
    own, before, after = at == t, same & (at <= t), same & (at >= t)
    count = len(case.seqlens or (1,))
    never, state = torch.zeros_like(same), torch.arange(count) == owner[t]
    no_state = torch.zeros_like(state)
    normalized = case.options.get("normalize", False)
    curved = case.options.get("feature_map") == "taylor2"
    if poison in ("q", "dout"):
        found = {"out": own if poison == "q" else never, "dq": own}
        # The gradient of what lets earlier tokens through, up to this one.
        found |= {"dk": before, "dv": before, "dlog_decay": before}
        return found | {"s": no_state, "z": no_state, "ds": state, "dz": state}
    found = {"out": after, "dq": after, "s": state, "z": state if poison == "k" else no_state}
    found |= {
        "dk": own if poison == "v" or curved else never,
        "dv": own if poison == "k" else never,
    }
    found |= {"ds": no_state, "dz": no_state}
    if normalized:  # by way of the rows that it reaches
        found |= {"dk": same, "dz": state}
        if poison == "k":
            found |= {"dv": same, "ds": state}
    return found


def results(tensors: Tensors, options: dict[str, Any]) -> Tensors:
    """All results, for the gradient ``dout`` of out and none of the state."""
    leaves: dict[str, Any] = {
        name: x.detach().requires_grad_(x.is_floating_point())
        for name, x in tensors.items()
        if name != "dout"
    }
    inputs = {n: x for n, x in leaves.items() if n not in ("s", "z")}
    inputs["initial_state"] = (leaves["s"], leaves["z"]) if "z" in leaves else leaves["s"]
    out, state = linear_attention(**inputs, **options, return_final_state=True)
    made = {"out": out} | (dict(zip("sz", state, strict=True)) if "z" in leaves else {"s": state})
    wanted = [n for n, x in leaves.items() if x.requires_grad]
    found = torch.autograd.grad(out, [leaves[n] for n in wanted], tensors["dout"])
    made |= {f"d{n}": gradient for n, gradient in zip(wanted, found, strict=True)}
    return {n: x.detach() for n, x in made.items()}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_tokens(name: str, backend: str) -> None:
    """Across chunks of 48 tokens."""
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    tensors["dout"] = torch.randn(1, case.tokens, 2, 8, generator=torch.Generator().manual_seed(2))
    with use_backend(backend):
        clean = results(tensors, case.options)
        for poison in ("q", "k", "v", "dout"):
            for t, value in positions(case.tokens, backend):
                found = results(poisoned(tensors, poison, (0, t, 0), value), case.options)
                depends = dependents(case, poison, t)
                for result, mask in depends.items():
                    if result not in clean or clean[result].shape == (2,):  # a decay of all tokens
                        continue
                    of_tokens = result not in ("s", "z", "ds", "dz")
                    pair = [
                        x[result].squeeze(0) if of_tokens else x[result] for x in (found, clean)
                    ]
                    assert_same(*pair, mask, f"{value} in {poison}[{t}], {result}")
                if poison == "v":
                    assert_reached(found["out"][0], depends["out"], f"v[{t}]")


def test_steps_and_states() -> None:
    """One sequence of several, in a pool and among states."""
    q, k, v = (torch.randn(3, 2, 8) for _ in "qkv")
    pool = torch.randn(3, 2, 8, 8)
    pools = [pool.clone(), pool.clone()]
    clean = linear_attention_step(q, k, v, pools[0])
    k, v = k.clone(), v.clone()
    k[1], v[1] = torch.nan, torch.inf
    depends = torch.tensor([False, True, False])
    assert_same(linear_attention_step(q, k, v, pools[1]), clean, depends, "out")
    assert_same(pools[1], pools[0], depends, "state")
    long = [torch.randn(3, 70, 2, 8) for _ in "kv"]
    expected = segment_state(*long)
    long[0][1, 5] = torch.nan
    assert_same(segment_state(*long), expected, depends, "segment state")
