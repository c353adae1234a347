"""One linear attention problem: inputs, truth, and the comparison of a kernel with it.

The measure is the root mean square of the error over that of the truth, the reference in float64
on the very same (already rounded) inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tileattn import feature_maps, linear_attention, reference

#: A rounding to the dtype (two where gradients start from a rounded out), or what float32 loses in
#: long sums. No limit is above those of the specification: 1e-3, 5e-3, 8e-3.
LIMIT = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
LEAVES = ("q", "k", "v", "log_decay", "s", "z")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call; ``seqlens`` makes it packed."""

    batch: int = 2
    len: int = 113
    heads: int = 4
    heads_kv: int = 2
    dim: int = 32
    dim_v: int = 24
    decay: str = ""  # "h" or "bth"
    strength: float = 0.1  # of a decay, times |normal|
    gain: float = 1.0  # of the values
    state: bool = True  # an initial one
    seqlens: tuple[int, ...] = ()
    tail: int = 0  # packed tokens that belong to no sequence
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """In a row of the batch."""
        return sum(self.seqlens) + self.tail if self.seqlens else self.len

    @property
    def state_dim(self) -> int:
        """Channels of what meets the state."""
        fused = self.options.get("feature_map") == "taylor2"
        return 1 + self.dim + self.dim**2 if fused else self.dim

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        batch, length = self.batch, self.tokens
        made: Tensors = {}
        if self.seqlens:
            batch = 1
            offsets = [0, *accumulate(self.seqlens)]
            made["cu_seqlens"] = torch.tensor(offsets, dtype=torch.int32)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        normalize = self.options.get("normalize", False)

        def features(*shape: int) -> Tensor:  # denominators away from 0
            x = normal(*shape)
            return (x.abs() + 0.1 if normalize else x).to(dtype)

        made["q"] = features(batch, length, self.heads, self.dim)
        made["k"] = features(batch, length, self.heads_kv, self.dim)
        made["v"] = (self.gain * normal(batch, length, self.heads_kv, self.dim_v)).to(dtype)
        if self.decay:
            shape = (self.heads,) if self.decay == "h" else (batch, length, self.heads)
            made["log_decay"] = -self.strength * normal(*shape).abs()
        if self.state:
            sequences = len(self.seqlens) or batch
            made["s"] = normal(sequences, self.heads, self.state_dim, self.dim_v)
            if normalize:
                made["z"] = normal(sequences, self.heads, self.state_dim).abs()
        return made


def run(
    function: Callable[..., Any],
    tensors: Tensors,
    options: dict[str, Any],
    arriving: Mapping[str, float] = MappingProxyType({}),
    *,
    exact: bool,
) -> Tensors:
    """out, the final state and d<name> of every leaf, for random gradients times `arriving`."""
    leaves = {
        name: (t.double() if exact else t).detach().requires_grad_()
        for name, t in tensors.items()
        if name in LEAVES
    }
    inputs: dict[str, Any] = {n: t for n, t in leaves.items() if n not in ("s", "z")}
    if "s" in leaves:
        inputs["initial_state"] = (leaves["s"], leaves["z"]) if "z" in leaves else leaves["s"]
    if "cu_seqlens" in tensors:
        inputs["cu_seqlens"] = tensors["cu_seqlens"]
    out, state = function(**inputs, **options, return_final_state=True)
    results = {"out": out}
    results |= {"s": state[0], "z": state[1]} if isinstance(state, tuple) else {"s": state}
    generator = torch.Generator().manual_seed(1)
    gradients = [
        (arriving.get(n, 1.0) * torch.randn(t.shape, generator=generator)).to(
            t.device, tensors["q"].dtype if n == "out" else t.dtype
        )
        for n, t in results.items()
    ]
    gradients = [g.to(t.dtype) for g, t in zip(gradients, results.values(), strict=True)]
    found = torch.autograd.grad(
        list(results.values()), list(leaves.values()), gradients, allow_unused=True
    )
    results |= {
        f"d{name}": torch.zeros_like(leaves[name]) if gradient is None else gradient
        for name, gradient in zip(leaves, found, strict=True)
    }
    return {name: t.detach() for name, t in results.items()}


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt()) if x.numel() else 0.0


def compare(actual: Tensors, exact: Tensors, dtype: torch.dtype) -> None:
    assert actual.keys() == exact.keys()
    for name, expected in exact.items():
        assert actual[name].shape == expected.shape, name
        error, size = rms(actual[name].double() - expected), rms(expected)
        assert error <= LIMIT[dtype] * size, f"{name}: error {error:.3g} of {size:.3g}"


def truth(
    tensors: Tensors, options: dict[str, Any], arriving: Mapping[str, float] = MappingProxyType({})
) -> Tensors:
    """The reference in float64; it takes a feature map as a function."""
    if "feature_map" in options:
        options = options | {"feature_map": feature_maps.NAMED[options["feature_map"]]}
    return run(reference.linear_attention, tensors, options, arriving, exact=True)


def check(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Tensors:
    """Runs the kernel on the case, compares all results with the truth and returns them."""
    tensors = {name: t.to(device) for name, t in case.tensors(dtype, seed).items()}
    actual = run(linear_attention, tensors, case.options, exact=False)
    assert actual["out"].dtype == dtype
    for name, tensor in tensors.items():
        if name in LEAVES:
            assert actual[f"d{name}"].dtype == tensor.dtype, name
    compare(actual, truth(tensors, case.options), dtype)
    return actual
