"""What a measurement must name: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import tileattn
from tileattn._common.library import native

#: Environment variables that hold tileattn, torch, MKL and oneDNN to an older instruction set.
INSTRUCTION_SETS = (
    "TILEATTN_INSTRUCTION_SET",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)


def cpu_name() -> str:
    """The model name that the system gives, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def instruction_set() -> str:
    """The variant of the CPU kernels that this machine runs."""
    module = native()
    return "unknown (tileattn._native is not built)" if module is None else module.instruction_set()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def commit() -> str:
    """The commit of the source tree that runs, "-dirty" if it was changed; "" outside of one."""
    folder = Path(tileattn.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def conditions(device: str) -> dict[str, Any]:
    """What stands beside the figures in a result file."""
    return {
        "hardware": device_name(device),
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "instruction_set": instruction_set(),
        "environment": {name: os.environ[name] for name in INSTRUCTION_SETS if name in os.environ},
        "tileattn": tileattn.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
    }
