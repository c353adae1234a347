"""One attention problem: its inputs, its truth, and the comparison of a kernel with both.

``check`` takes the kernel as an argument: the same cases serve the CPU, a GPU and a simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from tolerance import GRADIENT_RATIO, OUT_RATIO, assert_as_exact
from torch import Tensor

from tileattn import attention, reference

DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks", "extra_keys", "extra_values")

Kernel = Callable[..., Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call; ``seqlens`` makes it packed."""

    batch: int = 2
    len_q: int = 37
    len_k: int = 53
    heads: int = 4
    heads_kv: int = 2
    dim: int = 32
    dim_v: int | None = None
    bias: str = ""  # which of the dimensions "bhq" it has in full, e.g. "bq"; "-" for none of them
    bias_dtype: torch.dtype | None = None
    alibi: str = ""  # "h" or "bh"
    sinks: bool = False
    seqlens: tuple[tuple[int, int], ...] = ()
    tail: tuple[int, int] = (0, 0)  # packed tokens of q and k that belong to no sequence
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype, device: str, seed: int = 0) -> Tensors:
        """Standard normal inputs, the same for every device."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, of)

        rows, keys = (self.batch, self.len_q), (self.batch, self.len_k)
        batch = self.batch
        made: Tensors = {}
        if self.seqlens:
            batch = len(self.seqlens)
            offsets = [[0, *accumulate(lengths)] for lengths in zip(*self.seqlens, strict=True)]
            for name, values in zip("qk", offsets, strict=True):
                made[f"cu_seqlens_{name}"] = torch.tensor(values, dtype=torch.int32, device=device)
            rows, keys = ((o[-1] + extra,) for o, extra in zip(offsets, self.tail, strict=True))
        made["q"] = normal(*rows, self.heads, self.dim)
        made["k"] = normal(*keys, self.heads_kv, self.dim)
        made["v"] = normal(*keys, self.heads_kv, self.dim_v or self.dim)
        if self.bias:
            full = zip("bhq", (batch, self.heads, self.len_q), strict=True)
            shape = [size if letter in self.bias else 1 for letter, size in full]
            made["bias"] = normal(*shape, self.len_k, of=self.bias_dtype or dtype)
        if self.alibi:
            shape = [batch, self.heads] if self.alibi == "bh" else [self.heads]
            made["alibi_slopes"] = normal(*shape, of=torch.float32).abs() / 4
        if self.sinks:
            made["sinks"] = normal(self.heads, of=torch.float32)
        return made


def upstream(out: Tensor, lse: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Standard normal gradients that arrive at out and lse."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in (out, lse)
    )


def run(
    kernel: Kernel,
    tensors: Tensors,
    options: dict[str, Any],
    gradients: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype | None = None,
) -> Tensors:
    """out, lse and, for given incoming gradients, d<name> of every differentiable input.

    With ``dtype`` the floating inputs are converted first.
    """

    def leaf(name: str, tensor: Tensor) -> Tensor:
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return tensor.detach().requires_grad_(name in DIFFERENTIABLE and gradients is not None)

    leaves = {name: leaf(name, tensor) for name, tensor in tensors.items()}
    out, lse = kernel(**leaves, **options, return_lse=True)
    results = {"out": out.detach(), "lse": lse.detach()}
    if gradients is not None:
        names = [name for name in DIFFERENTIABLE if name in leaves]
        arriving = tuple(g.to(t.dtype) for g, t in zip(gradients, (out, lse), strict=True))
        found = torch.autograd.grad((out, lse), [leaves[n] for n in names], arriving)
        results |= {f"d{name}": gradient for name, gradient in zip(names, found, strict=True)}
    return results


def sink_gradient(
    sinks: Tensor, exact: Tensors, gradients: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """The gradient of sinks worked out from the rounded out, as one would write it in PyTorch.

    A few numbers, each a long sum: the error of one other way to add it up says little.
    """
    dout, dlse = gradients
    delta = (dout * exact["out"].to(dtype).double()).sum(-1) - dlse
    weight = torch.exp(sinks - exact["lse"]).masked_fill(exact["lse"] == -torch.inf, 0.0)
    return -(weight * delta).flatten(0, -2).sum(0)


def compare(
    tensors: Tensors,
    options: dict[str, Any],
    actual: Tensors,
    with_grad: bool,
    truth: Kernel = reference.attention,
) -> None:
    """Every result against the reference in float64, by the error of the same-dtype reference."""
    dtype = tensors["q"].dtype
    gradients = upstream(actual["out"], actual["lse"]) if with_grad else None
    options = {name: value for name, value in options.items() if name != "deterministic"}
    exact = run(truth, tensors, options, gradients, torch.float64)
    own = run(truth, tensors, options | {"compute_dtype": dtype}, gradients)
    # lse is float32 in every kernel, so its peer computes in float32.
    own["lse"] = run(truth, tensors, options, None)["lse"]
    assert actual["out"].dtype == dtype and actual["lse"].dtype == torch.float32
    for name in exact:
        ratio = GRADIENT_RATIO if name.startswith("d") else OUT_RATIO
        peers = [own[name]]
        if name == "dsinks" and gradients is not None:
            peers.append(sink_gradient(tensors["sinks"], exact, gradients, dtype))
        assert_as_exact(name, actual[name], exact[name], *peers, ratio=ratio)
        if name.startswith("d"):
            assert actual[name].dtype == tensors[name[1:]].dtype, name


def check(
    case: Case,
    dtype: torch.dtype,
    device: str,
    *,
    with_grad: bool = True,
    kernel: Kernel = attention,
    seed: int = 0,
) -> Tensors:
    """Runs the kernel on the case, compares all results with the truth and returns them."""
    tensors = case.tensors(dtype, device, seed)
    rows = tensors["q"].shape[:-1]
    shape = (*rows, tensors["v"].shape[-1])
    like = torch.empty(shape, dtype=dtype, device=device), torch.empty(rows, device=device)
    actual = run(kernel, tensors, case.options, upstream(*like) if with_grad else None)
    compare(tensors, case.options, actual, with_grad)
    return actual
