"""A NaN or an infinity in a token of softmax attention: what does not see it stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case, run, upstream
from grid_cases import GridCase
from nonfinite import assert_reached, assert_same, poisoned, positions
from torch import Tensor

from tileattn import attention, neighborhood_attention, reference, use_backend

Tensors = dict[str, Tensor]

SHAPE = Case(batch=1, len_q=53, len_k=75, heads=2, heads_kv=1, dim=8, dim_v=16)
DENSE = {
    "causal": replace(SHAPE, options={"causal": True}),
    "window": replace(SHAPE, options={"window": (9, 4)}),
    "sinks": replace(
        SHAPE, sinks=True, options={"causal": True, "window": (9, None), "sink_tokens": 3}
    ),
    "scores": replace(SHAPE, bias="hq", alibi="h", options={"causal": True, "softcap": 5.0}),
    "few queries": replace(SHAPE, len_q=3, heads=16, heads_kv=8, options={"causal": True}),
    "one query of each head": replace(
        SHAPE, len_q=1, heads=8, heads_kv=8, options={"window": (20, 0)}
    ),
    "packed": replace(SHAPE, seqlens=((7, 9), (40, 50), (0, 3), (6, 13)), options={"causal": True}),
}
GRID: dict[str, GridCase] = {
    "causal": GridCase((80,), {"window": 7, "causal": True}),
    "plane": GridCase((9, 10), {"window": (3, 4), "causal": (True, False)}, extra=5),
    "space": GridCase((4, 5, 6), {"window": 2, "stride": (1, 2, 1), "dilation": (1, 1, 2)}),
}


def visible(case: Case) -> Tensor:
    """bool [queries, keys]."""
    options = {
        name: value
        for name, value in case.options.items()
        if name in ("causal", "window", "sink_tokens")
    }
    if not case.seqlens:
        return reference.attention_mask(case.len_q, case.len_k, **options)
    blocks = [reference.attention_mask(q, k, **options) for q, k in case.seqlens]
    return torch.block_diag(*blocks)


def dependents(seen: Tensor, poison: str, t: int) -> dict[str, Tensor]:
    """For each result, bool [tokens]: what depends on token t of one of the tensors.

    seen: bool [queries, keys].
    """
    if poison in ("q", "dout"):
        rows = torch.zeros(seen.shape[0], dtype=torch.bool)
        rows[t] = True
        keys = seen[t]
    else:
        rows = seen[:, t]
        keys = seen[rows].any(0)  # by way of the softmax of these rows
    none = torch.zeros_like(rows)
    found = {"out": rows, "lse": rows, "dq": rows, "dk": keys, "dv": keys}
    if poison == "v":
        found |= {"lse": none, "dv": torch.zeros_like(keys)}
    if poison == "dout":
        found |= {"lse": none, "out": none}
    return found


def check_property(
    kernel: Callable[..., Any],
    tensors: Tensors,
    options: dict[str, Any],
    seen: Tensor,
    backend: str,
) -> None:
    """tensors: tokens in one dimension, those of keys may be in two parts."""

    def results(changed: Tensors) -> Tensors:
        inputs = {name: x for name, x in changed.items() if name != "dout"}
        gradients = (changed["dout"], torch.zeros(changed["dout"].shape[:-1]))
        return run(kernel, inputs, options, gradients)

    clean = results(tensors)
    keys = {"k": "extra_keys", "v": "extra_values"}
    own = tensors["k"].shape[-3]
    for name in ("q", "k", "v", "dout"):
        for t, value in positions(seen.shape[name in keys], backend):
            of_extra = name in keys and t >= own
            where = (..., t - own, 0, slice(None)) if of_extra else (..., t, 0, slice(None))
            found = results(poisoned(tensors, keys[name] if of_extra else name, where, value))
            depends = dependents(seen, name, t)
            for result, expected in clean.items():
                mask = depends.get(result)
                if result in ("dextra_keys", "dextra_values"):
                    mask = depends["dk" if "keys" in result else "dv"][own:]
                elif result in ("dk", "dv"):
                    mask = depends[result][:own]
                if mask is not None:  # others are sums over all queries
                    what = f"{value} in {name}[{t}], {result}"
                    tokens_first = found[result].movedim(-2 if result == "lse" else -3, 0)
                    expected = expected.movedim(-2 if result == "lse" else -3, 0)
                    assert_same(tokens_first, expected, mask, what)
            if name == "v":
                assert_reached(found["out"].movedim(-3, 0)[..., 0, :], depends["out"], f"v[{t}]")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, backend: str) -> None:
    case = DENSE[name]
    tensors = case.tensors(torch.float32, "cpu")
    tensors["dout"] = upstream(torch.empty(*tensors["q"].shape[:-1], 16), torch.empty(1))[0]
    with use_backend(backend):
        check_property(attention, tensors, case.options, visible(case), backend)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", GRID)
def test_neighborhood(name: str, backend: str) -> None:
    case = replace(GRID[name], batch=1, heads=2, heads_kv=1, dim=8, dim_v=8)
    tensors = case.tensors(torch.float32, "cpu")
    tensors = {n: x if n.startswith("extra") else x.flatten(1, -3) for n, x in tensors.items()}
    tensors["dout"] = upstream(torch.empty(tensors["q"].shape), torch.empty(1))[0]
    seen = reference.neighborhood_mask(case.grid, **case.options)
    if case.extra:
        seen = torch.cat([seen, seen.new_ones(len(seen), case.extra)], 1)

    def kernel(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
        q, k, v = (x.unflatten(1, case.grid) for x in (q, k, v))
        out, lse = neighborhood_attention(q, k, v, **rest)
        return out.flatten(1, -3), lse.flatten(1, -2)

    with use_backend(backend):
        check_property(kernel, tensors, case.options, seen, backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Pairs of bfloat16 have instructions of their own, and may be hidden by half."""
    case = DENSE["sinks"]
    tensors = case.tensors(dtype, "cpu")
    tensors["dout"] = torch.ones(*tensors["q"].shape[:-1], 16, dtype=dtype)
    check_property(attention, tensors, case.options, visible(case), "auto")


def test_a_bias_of_minus_infinity_hides() -> None:
    """As padding is often hidden."""
    q, k, v = (torch.randn(1, 9, 2, 8).requires_grad_() for _ in "qkv")
    bias = torch.zeros(1, 1, 1, 9)
    bias[..., 6:] = -torch.inf
    with torch.no_grad():
        k[:, 6] = v[:, 7] = torch.nan
    for backend in ("auto", "reference"):
        out = attention(q, k, v, bias=bias, backend=backend)
        assert bool(out.isfinite().all())
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
        assert all(bool(g.isfinite().all()) for g in gradients), backend


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_other_instruction_sets(instruction_set: str) -> None:
    """Where this machine has them; otherwise a lower one runs."""
    here = Path(__file__).parent
    files = [here / "test_nonfinite.py", here / "test_nonfinite_linear.py"]
    chosen = "auto and (sinks or plane or normalized) or half"
    environment = {**os.environ, "TILEATTN_INSTRUCTION_SET": instruction_set}
    command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
