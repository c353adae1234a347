"""Runs the CUDA kernels on CPU tensors: the PTX simulator stands in for the CUDA runtime.

    with Simulator().kernels():
        tileattn.attention(q, k, v)        # q, k, v on the CPU

Inside, the operators ``torch.ops.tileattn.*`` on CPU tensors run the CUDA kernels instead of the
CPU kernels, so that the whole Python layer and the torch binding are exercised with them.

The libraries are those of a build with TILEATTN_TESTS=ON. Every check of the simulator is on, and
it claims to be an sm_80 device unless it is ``configured`` otherwise.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tileattn import _native
from tileattn.dense import _op as dense
from tileattn.linear import _op as linear
from tileattn.neighborhood import _op as neighborhood

_KIB = 1024
#: What a block of a device may have of shared memory, by compute capability.
_SHARED = {80: 163 * _KIB, 86: 99 * _KIB, 90: 227 * _KIB}
_BUILD = Path(__file__).parents[2] / "build/Release"
_OPTIONS = {
    "PTXSIM_UNINIT": "1",
    "PTXSIM_RACES": "1",
    "PTXSIM_BOUNDS": "strict",
    "PTXSIM_CAPABILITY": "80",
}


def built_dims(op: str, capability: int = 80) -> list[int]:
    """The head-dim buckets of ``op`` that were built and that such a device chooses; see
    cuda/kernels.cmake. Hopper has a forward of its own."""
    return sorted(
        {
            row["dim"]
            for row in _native.cuda_kernels()
            if row["op"] == op
            and row["capability"] == (90 if op == "forward" and capability == 90 else 80)
            and row["shared_limit"] <= _SHARED[capability]
        }
    )


class Simulator:
    """The CUDA kernels on the simulator; raises OSError where they do not load."""

    def __init__(self) -> None:
        os.environ.update(_OPTIONS)
        self._runtime = ctypes.CDLL(str(_BUILD / "ptxsim/libptxsim.so"))
        for function in (self._runtime.ptxsim_stats_json, self._runtime.ptxsim_kernel_names):
            function.restype = ctypes.c_char_p
        self._library = torch.library.Library("tileattn_simulated", "DEF")
        for schema in (*dense.SCHEMAS, *neighborhood.SCHEMAS, *linear.SCHEMAS):
            self._library.define(schema)
        # A torch with CUDA has loaded the real runtime; the kernels must find the simulator first.
        self._kernels = ctypes.CDLL(
            str(_BUILD / "_torch_simulated.so"), mode=os.RTLD_NOW | os.RTLD_DEEPBIND
        )
        self.calls = 0

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Inside, the raw operators on CPU tensors run the CUDA kernels."""
        with _Redirect(self):
            yield

    @contextmanager
    def configured(self, **variables: object) -> Iterator[None]:
        """Inside, PTXSIM_<NAME> is what is given as ``name``: seed, async_, capability,
        multiprocessors, ..."""
        names = {f"PTXSIM_{name.strip('_').upper()}": value for name, value in variables.items()}
        before = {name: os.environ.pop(name) for name in names if name in os.environ}
        os.environ.update({name: str(value) for name, value in names.items()})
        self._runtime.ptxsim_reload_options()
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
            os.environ.update(before)
            self._runtime.ptxsim_reload_options()

    def kernel_names(self) -> set[str]:
        """The signatures of all kernels of the library, as the counters name them."""
        return set(self._runtime.ptxsim_kernel_names().decode().splitlines())

    def counters(self) -> list[dict[str, Any]]:
        """What each kernel has done since the last call, inside ``configured(stats="collect")``."""
        counted: list[dict[str, Any]] = json.loads(self._runtime.ptxsim_stats_json())
        self._runtime.ptxsim_reset_stats()
        return counted


class _Redirect(TorchDispatchMode):
    """Hands the raw operators to their namesakes that simulate; everything else goes its way."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._simulator = simulator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "tileattn":
            self._simulator.calls += 1
            func = getattr(torch.ops.tileattn_simulated, func._opname).default
        return func(*args, **(kwargs or {}))
