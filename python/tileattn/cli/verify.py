"""``tileattn verify``: the kernels on this machine against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import tileattn
from tileattn import capabilities, reference
from tileattn.cli import console, machine
from tileattn.testing import GRADIENT_RATIO, OUT_RATIO, Accuracy, accuracy

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


#: What an operator returns beside out, if asked by return_<it>.
SECOND_RESULT = {
    "attention": "lse",
    "neighborhood_attention": "lse",
    "linear_attention": "final_state",
}


@dataclass(frozen=True)
class Case:
    """One call of an operator: shapes, options, and which tensor options to make."""

    name: str
    operator: str = "attention"
    tokens_q: tuple[int, ...] = (130,)
    tokens_k: tuple[int, ...] = (187,)
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
            "q": normal(2, *self.tokens_q, self.heads, self.dim),
            "k": normal(2, *self.tokens_k, self.heads_kv, self.dim),
            "v": normal(2, *self.tokens_k, self.heads_kv, self.dim_v),
        }
        extra_rows = (2, 5, self.heads_kv)
        optional = {
            "bias": lambda: normal(2, 1, *self.tokens_q, *self.tokens_k),
            "sinks": lambda: normal(self.heads).float(),
            "alibi_slopes": lambda: torch.arange(1.0, self.heads + 1, device=device) / 16,
            "extra_keys": lambda: normal(*extra_rows, self.dim),
            "extra_values": lambda: normal(*extra_rows, self.dim_v),
            "log_decay": lambda: -0.1 * normal(2, *self.tokens_q, self.heads).float().abs(),
            "initial_state": lambda: normal(2, self.heads, self.dim, self.dim_v).float(),
        }
        return made | {name: optional[name]() for name in self.extras}


def _on_grid(name: str, grid: tuple[int, ...], **fields: Any) -> Case:
    return Case(name, "neighborhood_attention", grid, grid, **fields)


def _linear(name: str, **fields: Any) -> Case:
    return Case(name, "linear_attention", (130,), (130,), **fields)


CASES = (
    Case("dense"),
    Case("causal, bottom-right", options={"causal": True}),
    Case("window (40, 9)", options={"window": (40, 9)}),
    Case(
        "causal window, sink tokens",
        tokens_q=(187,),
        options={"window": (40, None), "sink_tokens": 5, "causal": True},
    ),
    Case("rows that see no key", tokens_q=(90,), tokens_k=(50,), options={"causal": True}),
    Case("softcap", options={"softcap": 3.0}),
    Case("ALiBi, bias, sinks", extras=("alibi_slopes", "bias", "sinks")),
    Case("multi-query, D 128, Dv 32", heads_kv=1, dim=128, dim_v=32),
    Case("D 256", tokens_q=(70,), heads=2, heads_kv=2, dim=256, dim_v=256),
    Case("decode, one query", tokens_q=(1,), tokens_k=(700,)),
    _on_grid("neighborhood 1-D", (140,), options={"window": 25}),
    _on_grid(
        "neighborhood 2-D, stride, dilation",
        (17, 13),
        options={"window": (5, 6), "stride": (2, 3), "dilation": (3, 1)},
    ),
    _on_grid(
        "neighborhood 3-D, causal in time",
        (5, 7, 6),
        options={"window": (3, 5, 4), "causal": (True, False, False)},
    ),
    _on_grid(
        "neighborhood, extra keys",
        (11, 12),
        options={"window": (5, 5)},
        extras=("extra_keys", "extra_values"),
    ),
    _linear("linear"),
    _linear("linear, decay, state", extras=("log_decay", "initial_state")),
    _linear("linear, not causal", options={"causal": False}),
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
    """The accuracy of both results and every gradient."""
    tensors = case.tensors(dtype, device)
    kernel, exactly = getattr(tileattn, case.operator), getattr(reference, case.operator)
    second = SECOND_RESULT[case.operator]
    options = case.options | {f"return_{second}": True}
    actual = _results(kernel, tensors, second, options)
    exact = _results(exactly, tensors, second, options, torch.float64)
    own = _results(exactly, tensors, second, options | {"compute_dtype": dtype})
    # That of the kernels is float32 whatever the dtype, and so is its peer's.
    _, own[second] = exactly(**tensors, **options)
    for name, expected in exact.items():
        ratio = GRADIENT_RATIO if name.startswith("d") else OUT_RATIO
        yield name, accuracy(actual[name], expected, own[name], ratio)


def _results(
    kernel: Any, tensors: dict[str, Tensor], second: str, options: dict[str, Any], dtype: Any = None
) -> dict[str, Tensor]:
    """out, what comes second, and the gradients for fixed random ones that arrive at both."""
    leaves = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_(name != "alibi_slopes")
        for name, tensor in tensors.items()
    }
    results = kernel(**leaves, **options)
    generator = torch.Generator().manual_seed(1)
    arriving = [
        torch.randn(t.shape, generator=generator).to(tensors["q"].dtype).to(t.device, t.dtype)
        for t in results
    ]
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    found = torch.autograd.grad(results, [leaves[name] for name in names], arriving)
    gradients = {f"d{name}": grad for name, grad in zip(names, found, strict=True)}
    out, other = (result.detach() for result in results)
    return {"out": out, second: other, **gradients}
