"""``tileattn info``: what is installed and what can run here."""

from __future__ import annotations

import platform

import torch
from rich.table import Table

import tileattn
from tileattn import capabilities
from tileattn._common.library import cuda_kernels
from tileattn.cli import console, machine


def info() -> None:
    """Show versions, the CPU and GPU, and which kernel supports what.

    Example: tileattn info
    """
    facts = console.table("", "")
    for name, value in _facts():
        facts.add_row(name, value)
    console.out.print(facts)
    console.out.print()
    title = "Capabilities (yes, or the number of the reason below)"
    console.show(title, _capability_table())
    reasons = dict.fromkeys(cell.reason for cell in capabilities.table() if cell.reason)
    for number, reason in enumerate(reasons, 1):
        console.out.print(f"  {number}: {reason}", markup=False)


def _facts() -> list[tuple[str, str]]:
    without_cpu, without_cuda = map(capabilities.why_unavailable, ("cpu", "cuda"))
    return [
        ("tileattn", tileattn.__version__),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("CPU", machine.cpu_name()),
        ("CPU kernels", without_cpu or f"{machine.instruction_set()} variant"),
        ("threads", str(torch.get_num_threads())),
        ("CUDA kernels", without_cuda or _built_head_dims("forward", "backward")),
        ("CUDA kernels, linear", without_cuda or _built_head_dims("linear")),
        ("CUDA kernels, taylor2", without_cuda or _built_head_dims("linear_taylor2")),
        ("CUDA device", _cuda_device()),
    ]


def _built_head_dims(*ops: str) -> str:
    """The head dims that kernels of ``ops`` were compiled for; others are padded to the next."""
    dims: dict[str, set[int]] = {}
    for kernel in cuda_kernels():
        if kernel["op"] in ops:
            dims.setdefault(kernel["dtype"], set()).add(kernel["dim"])
    built = (f"{dtype} {', '.join(map(str, sorted(found)))}" for dtype, found in dims.items())
    return f"head dims up to: {'; '.join(built)}"


def _cuda_device() -> str:
    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none (torch itself was built without CUDA)"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def _capability_table() -> Table:
    backends = (*capabilities.KERNEL_BACKENDS, "reference")
    cells = {(cell.feature, cell.backend): cell for cell in capabilities.table()}
    reasons = list(dict.fromkeys(cell.reason for cell in cells.values() if cell.reason))
    made = console.table("", *backends)
    for feature in capabilities.FEATURES:
        row = [cells[feature, backend] for backend in backends]
        made.add_row(
            feature,
            *("yes" if cell.supported else str(reasons.index(cell.reason) + 1) for cell in row),
        )
    return made
