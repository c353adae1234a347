"""What ``ptxas -v`` said of every kernel, read from the logs that cuda/CMakeLists.txt keeps.

python cuda/resources.py [--json] [--check] [build folder, default build/Release]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
# Of wgmma made serial and of setmaxnreg ignored; compile.sh makes it an error.
_REMARK = re.compile(r"\(C75\d\d\).*")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """One kernel on one architecture; sizes in bytes.

    ``shared`` is static; ``launch_shared`` is the most that a launch of the same row of the kernel
    table asks for, None where the build has no such row.
    """

    kernel: str
    arch: str
    registers: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    shared: int = 0
    launch_shared: int | None = None
    remarks: list[str] = field(default_factory=list)


def parse(log: str) -> Iterator[Kernel]:
    """The kernels of one log, with mangled names."""
    kernel, in_entry = None, False
    remarks: list[str] = []
    for line in log.splitlines():
        if remark := _REMARK.search(line):
            remarks.append(remark[0])
        if entry := _ENTRY.search(line):
            kernel = Kernel(*entry.groups())
        elif "Function properties for" in line:
            # ptxas lists called functions, too; their stack is not the kernel's own line.
            in_entry = kernel is not None and line.split()[-1] == kernel.kernel
        elif kernel and in_entry and (stack := _STACK.search(line)):
            kernel.stack, kernel.spill_stores, kernel.spill_loads = map(int, stack.groups())
        elif kernel and (used := _USED.search(line)):
            kernel.registers = int(used[1])
            shared = _SHARED.search(line)
            kernel.shared = int(shared[1]) if shared else 0
            kernel.remarks, remarks = remarks, []
            yield kernel
            kernel = None


def demangle(names: list[str]) -> list[str]:
    """The names as C++ writes them where a demangler is installed, else as they are."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else names


def launch_shared(folder: Path) -> dict[str, int]:
    """Bytes by the name that cuda/CMakeLists.txt gives a row. The build in
    ``folder`` tells."""
    name = "_native"
    loader = ExtensionFileLoader(name, str(folder / f"{name}.abi3.so"))
    spec = spec_from_loader(name, loader)
    if spec is None or not Path(loader.path).exists():
        return {}
    native = module_from_spec(spec)
    loader.exec_module(native)
    return {
        f"{k['op']}_sm{k['capability']}_{k['dim']}_{k['shared_limit'] // 1024}": k["shared_bytes"]
        for k in native.cuda_kernels()
    }


def read(folder: Path) -> list[Kernel]:
    """The kernels of all logs in ``folder``/cuda; empty if there are none."""
    asked, kernels = launch_shared(folder), []
    for log in sorted(folder.glob("cuda/*.log")):
        for kernel in parse(log.read_text()):
            kernel.launch_shared = asked.get(log.stem)
            kernels.append(kernel)
    for kernel, name in zip(kernels, demangle([k.kernel for k in kernels]), strict=True):
        kernel.kernel = name
    return kernels


def main() -> int:
    """Prints the table, or JSON with a line for each kernel; 1 if no log tells of a kernel, or with
    --check if one spills or ptxas remarked on its wgmma."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/Release"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    kernels = read(arguments.folder)
    if not kernels:
        print(f"no log of ptxas tells of a kernel in {arguments.folder}/cuda", file=sys.stderr)
        return 1
    if arguments.json:
        lines = ",\n".join(json.dumps(asdict(kernel)) for kernel in kernels)
        print(f"[\n{lines}\n]")
    else:
        for k in kernels:
            spill = f"{k.spill_stores}/{k.spill_loads}"
            print(f"{k.arch:8}{k.registers:4} registers {spill:>8} spilled  {k.kernel}")
    bad = [k for k in kernels if k.spill_stores or k.spill_loads or k.remarks]
    for k in bad if arguments.check else ():
        spill = f"{k.spill_stores}/{k.spill_loads} bytes spilled"
        print(f"{k.arch} {k.kernel}: {spill} {' '.join(k.remarks)}", file=sys.stderr)
    return 1 if bad and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
