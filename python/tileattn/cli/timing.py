"""Interleaved timing of a few functions in one process."""

from __future__ import annotations

import random
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
    functions: dict[str, Callable[[], object]],
    device: str,
    seconds: float,
    tell: Callable[[float], object],
) -> dict[str, Timing]:
    """Calls the functions in turn until ``seconds`` have passed, at least five rounds.

    Taking turns, each function meets the same disturbances of the machine, and in a new order each
    round, the caches and threads that each of the others leaves behind. One call is one sample.
    After each round ``tell`` gets the share that is done, up to 1.
    """
    for function in functions.values():  # caches, thread pools, lazy compilation
        function()
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    rounds, done = 0, 0.0
    order, shuffle = list(functions), random.Random(0).shuffle
    while done < 1.0:
        shuffle(order)
        for name in order:
            samples[name].append(_seconds(functions[name], device))
        rounds += 1
        elapsed = (time.perf_counter() - start) / seconds if seconds > 0 else 1.0
        done = min(rounds / 5, elapsed, 1.0)
        tell(done)
    return {
        name: Timing(statistics.median(found), min(found), rounds)
        for name, found in samples.items()
    }


def _seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":  # on the device's own clock, without the launch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
