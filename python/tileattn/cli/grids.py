"""Token grids and their windows on the command line: ``30x48x80``, or one number for all axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

import typer

from tileattn.cli import console

T = TypeVar("T")

Grid = Annotated[str, typer.Option(help="tokens per axis, e.g. 30x48x80")]
Window = Annotated[str, typer.Option(help="keys per axis, e.g. 18x24x24")]
Stride = Annotated[str, typer.Option(help="queries that share a window, per axis")]
Dilation = Annotated[str, typer.Option(help="gaps between keys, per axis")]
Causal = Annotated[str, typer.Option(help="1 for a causal axis, e.g. 1x0x0")]


def numbers(name: str, text: str) -> list[int]:
    """``8x8`` as [8, 8]; exits with 2 where it is something else."""
    if not re.fullmatch(r"\d+(x\d+)*", text):
        console.fail(f"{name} is {text!r}; it must be numbers with x between them, e.g. 8x8", 2)
    return [int(part) for part in text.split("x")]


def shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def per_axis(name: str, text: str, rank: int) -> list[int]:
    return _for_axes(numbers(name, text), rank)


def flags(name: str, text: str, rank: int) -> list[bool]:
    return _for_axes([bool(n) for n in numbers(name, text)], rank)


def _for_axes(values: list[T], rank: int) -> list[T]:
    """One value stands for all axes."""
    return values * rank if len(values) == 1 else values
