"""Linear attention on the CPU beside the same formula in PyTorch, interleaved in one process.

    python benchmarks/linear_attention.py [--json FILE]

Prints medians, time per token over the length, the speed-up over PyTorch, the useful FLOP/s (those
of chunks of 64 tokens, however the kernel cuts) as a fraction of a matrix product's, and the length
from which it is faster than our own causal softmax attention.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tileattn
from tileattn.cli import machine, timing

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
    found = timing.interleave(runs, "cpu", seconds, lambda done: None)
    return {name: measured.median for name, measured in found.items()}


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


def beside_dense(heads: int, dim: int, lengths: list[int], seconds: float) -> list[dict[str, Any]]:
    """Forward times in ms of linear attention and of causal softmax attention."""
    rows = []
    for tokens in lengths:
        q, k, v, decay = inputs(tokens, heads, dim)
        runs: dict[str, Run] = {
            "linear": partial(tileattn.linear_attention, q, k, v, log_decay=decay),
            "dense": partial(tileattn.attention, q, k, v, causal=True),
        }
        found = medians(runs, seconds)
        rows.append({"tokens": tokens} | {name: value * 1e3 for name, value in found.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--seconds", type=float, default=8.0, help="per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = []
    for dim in (64, 128):
        results.append(compare(4096, 8, dim, arguments.seconds))
        print({name: round(value, 3) for name, value in results[-1].items()})
    lengths = [2048, 8192, 32768, 131072]
    tokens = per_token(4, 64, lengths, arguments.seconds)
    print("ns per token:", {n: round(value, 1) for n, value in tokens.items()})
    growth = tokens[lengths[-1]] / tokens[lengths[0]]
    print(f"128k / 2k: {growth:.3f}")
    dense = beside_dense(8, 64, [64, 128, 256, 512, 1024, 2048], arguments.seconds / 4)
    faster = next((row["tokens"] for row in dense if row["linear"] < row["dense"]), None)
    print(f"faster than causal softmax attention from T = {faster}:")
    for row in dense:
        print({name: round(value, 3) for name, value in row.items()})
    if arguments.json:
        record = {
            "conditions": machine.conditions("cpu"),
            "method": f"fp32, batch 1, medians of calls in turn for {arguments.seconds} s a row",
            "results": results,
            "ns_per_token": tokens,
            "growth_128k_2k": growth,
            "beside_dense_ms": dense,
            "faster_than_dense_from": faster,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
