"""Linear operators and modules in half precision, also by autocast: 4096 tokens against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_cases import LIMIT, rms
from torch import Tensor, nn

import tileattn
import tileattn.nn as modules
from tileattn import feature_maps, use_backend

TOKENS, HEADS, DIM = 4096, 2, 8

#: The dtype of tensors and weights, and that of autocast.
SETTINGS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "f16": (torch.float16, None),
    "bf16": (torch.bfloat16, None),
    "autocast_f16": (torch.float32, torch.float16),
    "autocast_bf16": (torch.float32, torch.bfloat16),
}


def in_both(x: Tensor) -> Tensor:
    """Rounded to what float16 and bfloat16 both hold: one truth for all settings."""
    return x.bfloat16().half().bfloat16().double()


def normal(*shape: int, seed: int = 0, gain: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return in_both(gain * torch.randn(*shape, generator=generator))


def tokens(names: str = "q k v", length: int = TOKENS, gain: float = 1.0) -> dict[str, Tensor]:
    return {
        name: normal(1, length, HEADS, DIM, seed=n, gain=gain)
        for n, name in enumerate(names.split())
    }


@torch.no_grad()
def step(**inputs: Tensor) -> Tensor:
    """The last token, read from the state of the others; it has no gradient."""
    before = {name: x[:, :-1] for name, x in inputs.items() if name != "q"}
    state = tileattn.segment_state(**before, feature_map="elu1", normalize=True)
    last = {name: x[:, -1] for name, x in inputs.items()}
    return tileattn.linear_attention_step(**last, state=state, feature_map="elu1")


def half(function: Callable[..., Tensor], queries: int, **options: Any) -> Callable[..., Tensor]:
    """Of the last queries only: its memory grows with them."""

    def call(**inputs: Tensor) -> Tensor:
        last = {n: x[:, -queries:] if n in "qr" else x for n, x in inputs.items()}
        return function(**last, **options)

    return call


Made = tuple[Callable[..., Tensor], dict[str, Tensor]]
linear = tileattn.linear_attention

FUNCTIONS: dict[str, Callable[[], Made]] = {
    "plain": lambda: (linear, tokens()),
    "elu1": lambda: (
        functools.partial(linear, feature_map="elu1", normalize=True),
        tokens(gain=4.0),
    ),
    "taylor2": lambda: (
        functools.partial(linear, feature_map=feature_maps.taylor2, normalize=True, causal=False),
        tokens(),
    ),
    "segment_state": lambda: (
        functools.partial(tileattn.segment_state, feature_map="relu"),
        tokens("k v", gain=8.0),
    ),
    "step": lambda: (step, tokens()),
    "prefix": lambda: (
        functools.partial(tileattn.prefix_linear_attention, feature_map="relu"),
        tokens() | tokens("prefix_k prefix_v", 512),
    ),
    "clamped": lambda: (tileattn.clamped_linear_attention, tokens()),
    "clamped_loud": lambda: (tileattn.clamped_linear_attention, tokens(gain=20.0)),
    "clamped_below": lambda: (
        functools.partial(tileattn.clamped_linear_attention, minimum=3e4),
        tokens() | {"temperature": normal(HEADS)},
    ),
    "agent": lambda: (tileattn.agent_attention, tokens() | tokens("agents", 49)),
    "agent_driven": lambda: (tileattn.agent_attention, tokens() | tokens("agents", 2)),
    "local_linear": lambda: (
        half(tileattn.local_linear_attention, 100, iterations=8),
        tokens(),
    ),
    "parallax": lambda: (half(tileattn.parallax_attention, 100), tokens("q r k v")),
    "haar_filter": lambda: (
        tileattn.haar_filter,
        tokens("x") | {"gains": normal(5)},
    ),
    "wersa": lambda: (
        tileattn.wersa_attention,
        tokens() | {"gains": normal(4), "projection": normal(DIM, 40)},
    ),
    "wersa_narrow": lambda: (
        functools.partial(tileattn.wersa_attention, bandwidth=1e-5),
        tokens() | {"gains": normal(4), "projection": normal(DIM, 40)},
    ),
    "wersa_wide": lambda: (
        functools.partial(tileattn.wersa_attention, bandwidth=1e7),
        tokens() | {"gains": normal(4), "projection": normal(DIM, 40)},
    ),
}
for finalizer in ("sum", "count", "l2", "rms"):
    FUNCTIONS[f"softmax_rnn_{finalizer}"] = lambda finalizer=finalizer: (
        half(tileattn.softmax_rnn_attention, 100, finalizer=finalizer),
        tokens("q k") | {"v": normal(1, TOKENS, HEADS, DIM, gain=1e-4 if finalizer == "l2" else 1)},
    )

MODULES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "Prefix": lambda: (modules.PrefixLinearAttention(16, HEADS), normal(1, TOKENS // 4, 16)),
    "Clamped": lambda: (modules.ClampedLinearAttention(16, HEADS), normal(1, TOKENS, 16, gain=9)),
    "LocalLinear": lambda: (
        modules.LocalLinearAttention(8, 1, iterations=4),
        normal(1, TOKENS // 4, 8),
    ),
    "Parallax": lambda: (modules.ParallaxAttention(8, 1), normal(1, TOKENS // 4, 8)),
    "SoftmaxRnn": lambda: (modules.SoftmaxRnnAttention(16, HEADS), normal(1, TOKENS // 4, 16)),
    "Wersa": lambda: (modules.WersaAttention(16, HEADS, features=40), normal(1, TOKENS, 16)),
    "Agent": lambda: (
        modules.AgentAttention(16, HEADS, image=(64, 64)),
        normal(1, 64, 64, 16),
    ),
    "Agent_quiet": lambda: (
        modules.AgentAttention(16, HEADS, image=(64, 64)),
        normal(1, 64, 64, 16),
    ),
    "Lightning": lambda: (modules.LightningAttention(16, HEADS), normal(1, TOKENS, 16)),
    "Lightning_loud": lambda: (
        modules.LightningAttention(16, HEADS, layer=1, num_layers=2),
        normal(1, TOKENS, 16, gain=40),
    ),
    "Hedgehog": lambda: (modules.HedgehogFeatureMap(HEADS, 8), normal(1, TOKENS, HEADS, 8)),
    "RandomRelu": lambda: (modules.RandomReluFeatureMap(8, 40), normal(1, TOKENS, 8)),
}


def made(name: str) -> Made:
    if name in FUNCTIONS:
        return FUNCTIONS[name]()
    torch.manual_seed(0)
    module, x = MODULES[name]()
    module.double()
    with torch.no_grad():
        for weight in module.state_dict().values():
            weight.copy_(in_both(weight))

    def call(x: Tensor, **weights: Tensor) -> Tensor:
        arguments = (x, x[:, :512]) if name == "Prefix" else (x,)
        out = torch.func.functional_call(module.to(x.dtype), weights, arguments)
        return out[0] if name.startswith("Lightning") else out

    return call, {"x": x, **{n: p.detach() for n, p in module.named_parameters()}}


def run(name: str, dtype: torch.dtype, autocast: torch.dtype | None) -> dict[str, Tensor]:
    """out, and the gradient of every input and weight that has one."""
    function, inputs = made(name)
    leaves = {n: x.to(dtype).requires_grad_(n != "projection") for n, x in inputs.items()}
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        out = function(**leaves)
    results = {"out": out.detach()}
    if out.requires_grad:
        gain = {"Agent_quiet": 4e-3, "agent_driven": 3000.0}.get(name, 1.0)
        arriving = normal(*out.shape, seed=9, gain=gain).to(out.dtype)
        wanted = [n for n, x in leaves.items() if x.requires_grad]
        found = torch.autograd.grad(out, [leaves[n] for n in wanted], arriving)
        results |= {f"d{n}": gradient for n, gradient in zip(wanted, found, strict=True)}
    return results


@functools.cache
def truth(name: str) -> dict[str, Tensor]:
    with use_backend("reference"):
        return run(name, torch.float64, None)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_4096_tokens(name: str, setting: str) -> None:
    """Finite, of the dtype that autocast gives q as a matrix product has, some roundings off."""
    dtype, autocast = SETTINGS[setting]
    actual, expected = run(name, dtype, autocast), truth(name)
    exact = {"segment_state": torch.float32, "haar_filter": dtype}
    assert actual["out"].dtype == exact.get(name, autocast or dtype)
    for key, result in actual.items():
        assert bool(result.isfinite().all()), key
        if key == "dlog_bandwidth":  # 0: it divides the features of all tokens
            continue
        error = rms(result.double() - expected[key]) / rms(expected[key])
        roundings = 4 * LIMIT[autocast or dtype]
        # A rounded projection falls on the other side of relu's kink as often as it is wide.
        limit = roundings**0.5 if name in ("Clamped", "Wersa") and key != "out" else roundings
        assert error <= limit, f"{key}: {error:.3g}"
