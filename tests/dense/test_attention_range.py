"""Scores far from zero: keys masked by a large finite number, and rows that one key takes.

A float32 lse of -1e9 has no room for the logarithm of a sum, and out in 16 bits none for what a
gradient needs of it where the weights are nearly 0 and 1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, Tensors, run, sink_gradient, upstream
from grid_cases import GridCase
from tolerance import GRADIENT_RATIO, OUT_RATIO, assert_as_exact
from torch import Tensor

from tileattn import attention, neighborhood_attention, reference
from tileattn.reference.dense import _scores


def as_sdpa(**given: Any) -> Any:
    """The reference; in 16 bits it computes in float32, as torch's SDPA does, but for the gradient
    of the scores.

    In float64 the scores are rounded where a bias joins them: next to 1e9, float32 has no room
    for the product of q and k.
    """
    q, bias = given["q"], given.get("bias")
    if bias is not None and q.dtype in (torch.float16, torch.bfloat16):
        given["bias"] = bias = bias.clone()
        if bias.requires_grad:
            bias.register_hook(lambda gradient: gradient.to(q.dtype).to(gradient.dtype))
    if bias is not None and q.dtype == torch.float64:
        scale = given.get("scale") or q.shape[-1] ** -0.5
        modifiers = given.get("softcap", 0.0), given.get("alibi_slopes"), bias
        everything = torch.ones((), dtype=torch.bool, device=q.device)
        scores = _scores(q, given["k"], scale, *modifiers, everything).detach()
        given["bias"] = bias + (scores.float().double() - scores)
    return reference.attention(**given)


def check(
    tensors: Tensors,
    options: dict[str, Any],
    kernel: Any = attention,
    truth: Any = as_sdpa,
    *,
    saturated: bool = False,
) -> None:
    """All results against the truth, by the error of computing it in float32.

    Of saturated rows the mean error of gradients is looked at, without that of lse: the largest
    one is often the rounding of the result itself.
    """
    rows, dtype = tensors["q"].shape[:-1], tensors["q"].dtype
    shape = (*rows, tensors["v"].shape[-1])
    arriving = upstream(torch.empty(shape, dtype=dtype), torch.empty(rows))
    gradients = (arriving[0], torch.zeros_like(arriving[1]) if saturated else arriving[1])
    gradients = tuple(t.to(tensors["q"].device) for t in gradients)
    actual = run(kernel, tensors, options, gradients)
    options = {name: value for name, value in options.items() if name != "deterministic"}
    exact = run(truth, tensors, options, gradients, torch.float64)
    peer = run(truth, tensors, options, gradients)
    for name in exact:
        ratio = GRADIENT_RATIO if name.startswith("d") else OUT_RATIO
        peers = [peer[name]]
        if name == "dsinks":
            peers.append(sink_gradient(tensors["sinks"], exact, gradients, dtype))
        assert_as_exact(name, actual[name], exact[name], *peers, ratio=ratio)
        if saturated and name.startswith("d"):
            own, other = (mean_error(t[name], exact[name]) for t in (actual, peer))
            assert own <= 2 * other, f"{name}: {own:.3g} on average, where PyTorch has {other:.3g}"


def mean_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).square().mean().sqrt())


def mask(case: Case, value: float, dtype: torch.dtype, rows: str = "bq") -> Tensor:
    """A bias that masks by ``value``: every other row whole, of the rest all but five keys."""
    shape = [size if n in rows else 1 for n, size in (("b", case.batch), ("q", case.len_q))]
    bias = torch.zeros(shape[0], 1, shape[1], case.len_k, dtype=dtype)
    bias[..., 5:] = value
    bias.flatten(0, 2)[::2] = value
    return bias


SHAPES = {
    "gqa": Case(),
    "causal": Case(batch=1, len_q=200, len_k=331, options={"causal": True}),
    "split keys": Case(batch=1, len_q=3, len_k=700, heads=2, heads_kv=1),
    "few queries": Case(len_q=3, len_k=700, heads=16, heads_kv=8),
    "softcap and alibi": Case(alibi="h", options={"softcap": 3.0}),
    "sinks": Case(sinks=True),
    "wide": Case(batch=1, heads=2, heads_kv=1, dim=128, dim_v=64),
    "deterministic": Case(options={"deterministic": True}),
}


@pytest.mark.parametrize("value", [-1e9, 1e9, "min", "min of float32", "max of float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_finite_masks(name: str, value: float | str, dtype: torch.dtype, device: str) -> None:
    """Rows that are masked whole are those of the softmax of equal scores."""
    case = SHAPES[name]
    tensors = case.tensors(dtype, device)
    of = dtype if value == "min" else torch.float32
    limits = torch.finfo(of)
    number = value if isinstance(value, float) else getattr(limits, value.split()[0])
    tensors["bias"] = mask(case, number, of).to(device)
    check(tensors, case.options)


def test_masks_of_two_sizes(dtype: torch.dtype, device: str) -> None:
    """In a row that is masked whole, the smaller mask is what is seen."""
    case = Case()
    tensors = case.tensors(dtype, device)
    tensors["bias"] = mask(case, -1e9, torch.float32).to(device)
    tensors["bias"][..., 20:] = torch.finfo(torch.float32).min
    check(tensors, {})


def test_masks_of_keys(dtype: torch.dtype, device: str) -> None:
    """Broadcast over queries; the keys of one batch entry are masked whole."""
    case = Case(alibi="h")
    tensors = case.tensors(dtype, device)
    tensors["bias"] = mask(case, -1e9, torch.float32, "b").to(device)
    check(tensors, {"causal": True})


def test_sinks_among_masked_keys(dtype: torch.dtype, device: str) -> None:
    """A sink that is as far down as all keys takes the weight of one of them."""
    case = Case(sinks=True)
    tensors = case.tensors(dtype, device)
    tensors["bias"] = torch.full((2, 1, 1, case.len_k), -1e9, device=device)
    tensors["sinks"] = torch.tensor([-1e9, -1e9, -2e9, 0.0], device=device)
    check(tensors, {})


def test_tangents_of_sinks_among_masked_keys(dtype: torch.dtype, device: str) -> None:
    """In forward mode, of a call that no gradient was asked of."""
    case = Case(sinks=True)
    tensors = case.tensors(dtype, device)
    tensors["bias"] = torch.full((2, 1, 1, case.len_k), -1e9, device=device)
    tensors["sinks"] = torch.tensor([-1e9, -1e9, -2e9, 0.0], device=device)
    tangent = torch.tensor([0.3, -1.2, 0.7, 2.0], device=device)

    def tangents(f: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        given = {name: t if dtype is None else t.to(dtype) for name, t in tensors.items()}
        sinks = given.pop("sinks")
        found: tuple[Tensor, Tensor] = torch.func.jvp(
            lambda sinks: f(**given, sinks=sinks, return_lse=True), (sinks,), (tangent.to(sinks),)
        )[1]
        return found

    exact, peers = tangents(as_sdpa, torch.float64), tangents(as_sdpa)
    for name, *found in zip(("out", "lse"), tangents(attention), exact, peers, strict=True):
        assert_as_exact(name, *found, ratio=GRADIENT_RATIO)


def with_equal_scores(tensors: Tensors, size: float) -> Tensors:
    """All products of q and k are -size**2: queries have one channel, where all keys are equal."""
    q = torch.zeros_like(tensors["q"])
    q[..., 0] = size
    equal = {n: tensors[n].clone() for n in ("k", "extra_keys") if n in tensors}
    for keys in equal.values():
        keys[..., 0] = -size
    return tensors | {"q": q} | equal


BY_PRODUCT = {
    "dense": Case(),
    "window": Case(batch=1, len_q=200, len_k=331, options={"window": (40, 9)}),
    "negative scale": Case(options={"scale": -0.3, "causal": True}),
    "split keys": Case(batch=1, len_q=3, len_k=700, heads=2, heads_kv=1),
    "packed": Case(seqlens=((33, 50), (0, 4), (90, 70)), options={"causal": True}),
    "alibi": Case(alibi="h"),
}


@pytest.mark.parametrize("size", [2048.0, 16384.0])
@pytest.mark.parametrize("name", BY_PRODUCT)
def test_large_products(name: str, size: float, dtype: torch.dtype, device: str) -> None:
    """Without any bias, too."""
    case = BY_PRODUCT[name]
    check(with_equal_scores(case.tensors(dtype, device), size), case.options)


@pytest.mark.parametrize("size", [2048.0, 16384.0])
@pytest.mark.parametrize("scale", [None, -0.3])
@pytest.mark.parametrize("device", ["cpu", "cuda", "simulated"], indirect=True)
def test_large_products_on_a_grid(
    scale: float | None, size: float, dtype: torch.dtype, device: str
) -> None:
    options = {"window": (3, 5), "stride": (2, 1), "scale": scale}
    case = GridCase((9, 14), options, extra=5)
    tensors = with_equal_scores(case.tensors(dtype, device), size)
    check(tensors, options, neighborhood_attention, reference.neighborhood_attention)


SATURATED = {
    "q * 50": ({}, 50.0),
    "q * 8, causal": ({"causal": True}, 8.0),
    "softcap 50": ({"softcap": 50.0}, 50.0),
    "softcap 50, q * 8": ({"softcap": 50.0}, 8.0),
    "deterministic": ({"deterministic": True}, 50.0),
}


@pytest.mark.parametrize("dim", [32, 128])
@pytest.mark.parametrize("name", SATURATED)
def test_saturated_rows(name: str, dim: int, dtype: torch.dtype, device: str) -> None:
    """Where few keys have all the weight, what rounding takes from out is most of the error."""
    options, factor = SATURATED[name]
    tensors = Case(len_q=90, len_k=90, dim=dim).tensors(dtype, device)
    check(tensors | {"q": tensors["q"] * factor}, options, saturated=True)


def test_saturated_rows_of_packed_sequences(dtype: torch.dtype, device: str) -> None:
    tensors = Case(seqlens=((33, 50), (0, 4), (90, 70)), tail=(5, 0)).tensors(dtype, device)
    check(tensors | {"q": tensors["q"] * 50}, {}, saturated=True)


def test_saturated_rows_with_split_keys(dtype: torch.dtype, device: str) -> None:
    tensors = Case(batch=1, len_q=60, len_k=700).tensors(dtype, device)
    check(tensors | {"q": tensors["q"] * 50}, {}, saturated=True)


@pytest.mark.parametrize("device", ["cpu", "cuda", "simulated"], indirect=True)
def test_saturated_rows_on_a_grid(dtype: torch.dtype, device: str) -> None:
    options, truth = {"window": (5, 7)}, reference.neighborhood_attention
    tensors = GridCase((9, 14), options, extra=3).tensors(dtype, device)
    tensors["q"] = tensors["q"] * 50
    check(tensors, options, neighborhood_attention, truth, saturated=True)
