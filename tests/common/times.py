"""Where the time of ``make test`` goes: the build by folder, the Python tests by file.

python tests/common/times.py [build folder, default build/Release]

Read from Ninja's log (the last making of everything that stands, also in earlier runs) and from
pytest's tests.xml, both in the build folder; seconds of all processes together.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROWS = 14  # of each table; the rest is one row


def build_times(folder: Path) -> dict[str, float]:
    """Seconds by the folder of what was made."""
    last: dict[str, float] = {}
    for line in (folder / ".ninja_log").read_text().splitlines()[1:]:
        start, end, _, name, _ = line.split("\t")
        output = os.path.relpath(folder / name, folder)  # Ninja has some names twice
        if (folder / output).is_file():
            last[output] = (int(end) - int(start)) / 1000
    seconds: dict[str, float] = defaultdict(float)
    for output, took in last.items():
        made_in, _, _ = output.partition("/CMakeFiles/")
        folder_of = made_in if made_in != output else str(Path(output).parent)
        seconds[folder_of] += took
    return seconds


def suite_times(folder: Path) -> dict[str, float]:
    """Seconds by test file."""
    seconds: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(folder / "tests.xml").iter("testcase"):
        seconds[case.get("classname", "").split(".")[-1]] += float(case.get("time", 0))
    return seconds


def table(title: str, seconds: dict[str, float]) -> Table:
    """The longest first."""
    made = Table(title, "seconds", box=None)
    made.columns[1].justify = "right"
    order = sorted(seconds.items(), key=lambda item: -item[1])
    for name, took in order[:ROWS]:
        made.add_row(name, f"{took:.0f}")
    if rest := order[ROWS:]:
        made.add_row(f"{len(rest)} more", f"{sum(took for _, took in rest):.0f}")
    made.add_row("all", f"{sum(seconds.values()):.0f}")
    return made


def main() -> None:
    """Prints both tables."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/Release")
    console = Console()
    console.print(table("build of", build_times(folder)))
    console.print(table("tests of", suite_times(folder)))


if __name__ == "__main__":
    main()
