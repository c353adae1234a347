"""``tileattn demo linear``: small language models with softmax and with linear attention."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from tileattn.cli import console, machine
from tileattn.cli.demo.linear_model import MIXERS, build
from tileattn.cli.pictures import import_pyplot

WARM_UP = 2  # steps that are not timed
HELD_OUT, BATCH = 32768, 8192  # bytes that a model is judged by, and of those at a time
BITS = 1 / 0.6931471805599453  # per nat


@dataclass
class Run:
    """One model trained at one length."""

    mixer: str
    length: int
    tokens: int  # of a step
    losses: list[float] = field(default_factory=list)  # of every step, bits per byte
    seconds: list[float] = field(default_factory=list)  # of every timed step
    held_out: float = 0.0


def linear(
    steps: Annotated[int, typer.Option(min=WARM_UP + 1, help="of each model and length")] = 80,
    lengths: Annotated[str, typer.Option(help="tokens of a sequence")] = "512,2048,8192",
    step_tokens: Annotated[int, typer.Option(min=1, help="tokens of a step, at least")] = 8192,
    plot: Annotated[Path, typer.Option(help="picture of the loss curves")] = Path(
        "linear_attention_loss.png"
    ),
    seed: int = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Train byte-level language models on the text of Python's own manual.

    Two layers, alike but for what mixes the tokens: softmax attention, lightning attention, or
    linear attention with Hedgehog features, each on tileattn's kernels. Seed, data and number of
    tokens are the same for all. The exit code is 1 if a model learns nothing.

    Example: tileattn demo linear --steps 20 --lengths 512,2048
    """
    import_pyplot()  # a missing matplotlib is told before minutes of training
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        sizes = [int(part) for part in lengths.split(",")]
    except ValueError:
        console.fail(f"lengths is {lengths!r}; it must be numbers with commas between", 2)
    text = _text()
    cut = len(text) * 9 // 10
    if min(sizes) < 1 or max(sizes) > HELD_OUT:
        console.fail(f"lengths is {lengths!r}; allowed: 1 to {HELD_OUT}", 2)
    train, held_out = text[:cut], text[cut:]
    console.out.print(
        f"Python's manual: {len(train)} bytes to learn from, of which a step takes {step_tokens}; "
        f"{HELD_OUT} others to judge"
    )
    runs = [
        Run(mixer, length, -(-step_tokens // length) * length)
        for length in sizes
        for mixer in MIXERS
    ]
    with console.progress(len(runs) * steps, "train") as tell:
        for n, run in enumerate(runs):
            model = build(run.mixer, seed)
            for step in _train(run, model, train, steps, seed):
                tell(n * steps + step)
            run.held_out = _evaluate(run, model, held_out)
    _show(runs)
    _draw(runs, plot)
    if any(run.held_out >= run.losses[0] for run in runs):
        console.fail("a model learned nothing")


def _text() -> Tensor:
    """uint8 [bytes]: the language reference that ships with Python."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        console.fail("this Python comes without its manual (the module pydoc_data.topics)", 2)
    joined = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def _loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Bits per byte of predicting each byte of [B, T + 1] from those before it."""
    logits = model(windows[:, :-1].long())
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].long().flatten()) * BITS


def _train(run: Run, model: nn.Module, train: Tensor, steps: int, seed: int) -> Iterator[int]:
    """Yields the number of steps done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    batch = run.tokens // run.length
    offsets = torch.arange(run.length + 1)
    for step in range(steps):
        starts = torch.randint(len(train) - run.length, (batch, 1), generator=generator)
        started = time.perf_counter()
        loss = _loss(model, train[starts + offsets])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        run.losses.append(float(loss.detach()))
        if step >= WARM_UP:
            run.seconds.append(time.perf_counter() - started)
        yield step + 1


def _evaluate(run: Run, model: nn.Module, held_out: Tensor) -> float:
    """The loss on windows of the run's length, side by side."""
    windows = held_out[: HELD_OUT + 1].unfold(0, run.length + 1, run.length)
    total = 0.0
    with torch.no_grad():
        for part in windows.split(max(1, BATCH // run.length)):
            total += float(_loss(model, part)) * len(part)
    return total / len(windows)


def _show(runs: list[Run]) -> None:
    numeric = ("T", "first loss", "last loss", "held-out loss", "tokens/s", "speed")
    made = console.table("T", "mixer", *numeric[1:], right=numeric)
    rates = {}
    for run in runs:
        rates[run.length, run.mixer] = run.tokens / statistics.median(run.seconds)
    for run in runs:
        rate = rates[run.length, run.mixer]
        made.add_row(
            str(run.length),
            run.mixer,
            f"{run.losses[0]:.3f}",
            f"{sum(run.losses[-5:]) / len(run.losses[-5:]):.3f}",
            f"{run.held_out:.3f}",
            f"{rate:.0f}",
            f"{rate / rates[run.length, 'softmax']:.2f}x",
        )
    where = f"{machine.cpu_name()}, {torch.get_num_threads()} threads"
    console.show(f"Losses in bits per byte, training speed on {where}", made)


def _draw(runs: list[Run], path: Path) -> None:
    pyplot = import_pyplot()
    lengths = list(dict.fromkeys(run.length for run in runs))
    size = (4 * len(lengths), 3.2)
    figure, grid = pyplot.subplots(
        1, len(lengths), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, length in zip(grid[0], lengths, strict=True):
        for run in runs:
            if run.length == length:
                axis.plot(run.losses, label=f"{run.mixer}, held out {run.held_out:.2f}")
        axis.set(title=f"T = {length}", xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    grid[0][0].set_ylabel("loss, bits per byte")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    console.out.print(f"wrote {path}", markup=False)
