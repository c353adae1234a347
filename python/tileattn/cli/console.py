"""Output that all subcommands share: tables, progress, failure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

#: Piped output is plain and wide enough that no cell is cut off.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns named in ``right`` are aligned right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made


def show(title: str, made: Table) -> None:
    """The table below its title, which may be wider than it."""
    out.print(title, style="italic", markup=False, soft_wrap=True)
    out.print(made)


def verdict(passed: bool) -> str:
    return "[green]ok[/green]" if passed else "[bold red]FAILED[/bold red]"


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr that vanishes at the end; where stderr is no terminal, a line that names it.

    Yields a function that is told how much of ``total`` is done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    if not err.is_terminal:
        err.print(f"{what} ...")
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def fail(message: str, code: int = 1) -> NoReturn:
    """One readable line on stderr, then the exit code."""
    err.print(f"[bold red]error:[/bold red] {message}", soft_wrap=True)
    raise typer.Exit(code)


def check_device(device: str) -> str:
    """Returns ``device`` if kernels can run on it here; exits with 2 and the reason if not."""
    import torch

    from tileattn import capabilities

    if device not in capabilities.KERNEL_BACKENDS:
        fail(f"device is {device!r}; allowed: {', '.join(capabilities.KERNEL_BACKENDS)}", 2)
    if reason := capabilities.why_unavailable(device):
        fail(f"no kernels for {device}: {reason}", 2)
    if device == "cuda" and not torch.cuda.is_available():
        fail("torch sees no CUDA device on this machine", 2)
    return device
