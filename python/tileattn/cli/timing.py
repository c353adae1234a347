"""Interleaved timing of a few functions in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    minimum: float
    rounds: int


def interleave(
    functions: dict[str, Callable[[], object]], device: str, seconds: float
) -> dict[str, Timing]:
    """Calls the functions in turn until ``seconds`` have passed, at least five rounds.

    Taking turns, each function meets the same disturbances of the machine. One call is one sample.
    """
    for function in functions.values():  # caches, thread pools, lazy compilation
        function()
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, function in functions.items():
            samples[name].append(_seconds(function, device))
        rounds += 1
    return {
        name: Timing(statistics.median(found), min(found), rounds)
        for name, found in samples.items()
    }


def _seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
