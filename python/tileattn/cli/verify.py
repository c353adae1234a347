"""``tileattn verify``: the kernels on this machine against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from tileattn import attention, capabilities, reference
from tileattn.cli import console, machine
from tileattn.testing import GRADIENT_RATIO, OUT_RATIO, Accuracy, accuracy

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One call: shapes, options, and which tensor options to make."""

    name: str
    len_q: int = 130
    len_k: int = 187
    heads: int = 4
    heads_kv: int = 2
    dim: int = 64
    dim_v: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """Standard normal inputs; q, k, v and the options named in ``extras``."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        made = {
            "q": normal(2, self.len_q, self.heads, self.dim),
            "k": normal(2, self.len_k, self.heads_kv, self.dim),
            "v": normal(2, self.len_k, self.heads_kv, self.dim_v),
        }
        optional = {
            "bias": lambda: normal(2, 1, self.len_q, self.len_k),
            "sinks": lambda: normal(self.heads).float(),
            "alibi_slopes": lambda: torch.arange(1.0, self.heads + 1, device=device) / 16,
        }
        return made | {name: optional[name]() for name in self.extras}


CASES = (
    Case("dense"),
    Case("causal, bottom-right", options={"causal": True}),
    Case("window (40, 9)", options={"window": (40, 9)}),
    Case(
        "causal window, sink tokens",
        len_q=187,
        options={"window": (40, None), "sink_tokens": 5, "causal": True},
    ),
    Case("rows that see no key", len_q=90, len_k=50, options={"causal": True}),
    Case("softcap", options={"softcap": 3.0}),
    Case("ALiBi, bias, sinks", extras=("alibi_slopes", "bias", "sinks")),
    Case("multi-query, D 128, Dv 32", heads_kv=1, dim=128, dim_v=32),
    Case("D 256", len_q=70, heads=2, heads_kv=2, dim=256, dim_v=256),
    Case("decode, one query", len_q=1, len_k=700),
)


def verify(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Check the kernels against the float64 reference on this machine.

    An error may be twice (gradients: three times) that of the same computation in PyTorch in the
    same dtype. The exit code is 1 if a case fails.

    Examples:

        tileattn verify

        tileattn verify --device cuda
    """
    if not run(console.check_device(device)):
        raise typer.Exit(1)


def run(device: str) -> bool:
    """Prints the table; whether every case passed."""
    dtypes = [name for name in DTYPES if not capabilities.why_not(device, name)]
    numeric = ("error", "torch's", "ratio", "allowed")
    made = console.table(
        *("case", "dtype", "worst of", *numeric, "verdict"),
        right=numeric,
    )
    failed = 0
    with console.progress(len(CASES) * len(dtypes), "verify") as tell:
        for n, case in enumerate(CASES):
            for m, dtype in enumerate(dtypes):
                name, worst = max(
                    _measure(case, DTYPES[dtype], device),
                    key=lambda item: (not item[1].passed, item[1].error / item[1].allowed),
                )
                failed += not worst.passed
                figures = (worst.error, worst.peer_error, worst.ratio, worst.allowed)
                cells = ("-" if x != x else f"{x:.2g}" for x in figures)
                made.add_row(case.name, dtype, name, *cells, console.verdict(worst.passed))
                tell(n * len(dtypes) + m + 1)
    title = f"Kernels against the float64 reference on {machine.device_name(device)}"
    console.show(title, made)
    total = len(CASES) * len(dtypes)
    console.out.print(f"{total - failed} of {total} cases are as exact as PyTorch.")
    return not failed


def _measure(case: Case, dtype: torch.dtype, device: str) -> Iterator[tuple[str, Accuracy]]:
    """The accuracy of out, lse and every gradient."""
    tensors = case.tensors(dtype, device)
    actual = _results(attention, tensors, case.options)
    exact = _results(reference.attention, tensors, case.options, torch.float64)
    own = _results(reference.attention, tensors, case.options | {"compute_dtype": dtype})
    # The kernels' lse is float32 whatever the dtype, and so is its peer's.
    arguments: dict[str, Any] = tensors | case.options
    _, own["lse"] = reference.attention(**arguments, return_lse=True)
    for name, expected in exact.items():
        ratio = GRADIENT_RATIO if name.startswith("d") else OUT_RATIO
        yield name, accuracy(actual[name], expected, own[name], ratio)


def _results(
    kernel: Any, tensors: dict[str, Tensor], options: dict[str, Any], dtype: Any = None
) -> dict[str, Tensor]:
    """out, lse and the gradients for fixed random ones that arrive at both."""
    leaves = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_(name != "alibi_slopes")
        for name, tensor in tensors.items()
    }
    out, lse = kernel(**leaves, **options, return_lse=True)
    generator = torch.Generator().manual_seed(1)
    arriving = [
        torch.randn(t.shape, generator=generator).to(tensors["q"].dtype).to(t.device, t.dtype)
        for t in (out, lse)
    ]
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    found = torch.autograd.grad((out, lse), [leaves[name] for name in names], arriving)
    gradients = {f"d{name}": grad for name, grad in zip(names, found, strict=True)}
    return {"out": out.detach(), "lse": lse.detach(), **gradients}
