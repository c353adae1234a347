"""Linear attention on the CPU beside the same formula in PyTorch, interleaved in one process.

    python benchmarks/linear_attention.py [--json FILE]

Prints medians, the speed-up over PyTorch, the useful FLOP/s (those of chunks of 64 tokens, however
the kernel cuts) as a fraction of a matrix product's, time per token over the length, and our dense
attention's time beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import tileattn
from tileattn.cli import machine

CHUNK = 64
Run = Callable[[], object]


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """[B, T, H, D], constant decay [H], T a multiple of 64: batched products and one loop."""
    B, T, H, D = q.shape
    q, k, v = (x.transpose(1, 2).reshape(B, H, T // CHUNK, CHUNK, D) for x in (q, k, v))
    i = torch.arange(CHUNK)
    decay = log_decay[:, None, None]
    pairs = (decay * (i[:, None] - i)).exp().tril()[:, None]
    before = (decay * (i[:, None] + 1)).exp()[:, None]
    after = (decay * (CHUNK - 1 - i[:, None])).exp()[:, None]
    inside = ((q @ k.mT) * pairs) @ v
    added = (k * after).mT @ v
    total = (decay * CHUNK).exp()
    states, state = [], torch.zeros(B, H, D, D)
    for n in range(T // CHUNK):
        states.append(state)
        state = total * state + added[:, :, n]
    out = inside + (q * before) @ torch.stack(states, 2)
    return (out * D**-0.5).reshape(B, H, T, D).transpose(1, 2)


def medians(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Median time of each in seconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(runs))]) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def flops(tokens: int, heads: int, dim: int) -> float:
    """Forward: scores and values below the diagonal of a chunk, state read and updated."""
    return tokens * heads * (2 * CHUNK * dim + 4 * dim * dim)


def inputs(tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(1, tokens, heads, dim) for _ in range(3))
    return q, k, v, tileattn.decays.lightning(heads)


def compare(tokens: int, heads: int, dim: int, seconds: float) -> dict[str, float]:
    q, k, v, decay = inputs(tokens, heads, dim)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    dout = torch.randn_like(v)

    def train(function: Callable[..., Tensor]) -> Run:
        return lambda: torch.autograd.grad(function(*leaves), leaves, dout)

    def ours(*x: Tensor) -> Tensor:
        return tileattn.linear_attention(*x, log_decay=decay)

    def theirs(*x: Tensor) -> Tensor:
        return chunked(*x, decay)

    found = medians(
        {
            "forward": lambda: ours(q, k, v),
            "torch forward": lambda: theirs(q, k, v),
            "both": train(ours),
            "torch both": train(theirs),
            "product": lambda: a @ b,
        },
        seconds,
    )
    rate = 2 * 1024**3 / found["product"]
    work = flops(tokens, heads, dim)
    return {
        "tokens": tokens,
        "heads": heads,
        "dim": dim,
        "forward_ms": found["forward"] * 1e3,
        "forward_and_backward_ms": found["both"] * 1e3,
        "speedup_forward": found["torch forward"] / found["forward"],
        "speedup_forward_and_backward": found["torch both"] / found["both"],
        "gflops_forward": work / found["forward"] / 1e9,
        "gflops_product": rate / 1e9,
        "fraction_of_product": work / found["forward"] / rate,
    }


def per_token(heads: int, dim: int, lengths: list[int], seconds: float) -> dict[int, float]:
    """Nanoseconds of a forward per token, by length."""

    def run_of(tokens: int) -> Run:
        q, k, v, decay = inputs(tokens, heads, dim)
        return lambda: tileattn.linear_attention(q, k, v, log_decay=decay)

    found = medians({str(n): run_of(n) for n in lengths}, seconds)
    return {n: found[str(n)] / n * 1e9 for n in lengths}


def beside_dense(heads: int, dim: int, lengths: list[int], seconds: float) -> dict[int, float]:
    """Time of our causal dense attention over that of linear attention, by length: forward."""
    ratios = {}
    for tokens in lengths:
        q, k, v, decay = inputs(tokens, heads, dim)
        found = medians(
            {
                "linear": lambda: tileattn.linear_attention(q, k, v, log_decay=decay),  # noqa: B023
                "dense": lambda: tileattn.attention(q, k, v, causal=True),  # noqa: B023
            },
            seconds / len(lengths),
        )
        ratios[tokens] = found["dense"] / found["linear"]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--seconds", type=float, default=8.0, help="per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    with torch.random.fork_rng():
        for dim in (64, 128):
            result = compare(4096, 8, dim, arguments.seconds)
            results.append(result)
            print({name: round(value, 3) for name, value in result.items()})
        tokens = per_token(4, 64, [2048, 8192, 32768, 131072], arguments.seconds)
    print("ns per token:", {n: round(value, 1) for n, value in tokens.items()})
    print(f"128k / 2k: {tokens[131072] / tokens[2048]:.3f}")
    dense = beside_dense(8, 64, [64, 128, 256, 512, 1024, 2048, 8192], arguments.seconds)
    print("dense / linear:", {n: round(value, 2) for n, value in dense.items()})
    if arguments.json:
        record = {
            "conditions": machine.conditions("cpu"),
            "method": f"calls in turn in one process for {arguments.seconds} s; medians; fp32, B1",
            "results": results,
            "ns_per_token": tokens,
            "dense_to_linear": dense,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
