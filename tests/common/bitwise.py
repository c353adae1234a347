"""Whether a change left results equal to the last bit: a plugin that takes the tests as its cases.

    PYTHONPATH=tests/common pytest -p bitwise --record before.json   # on the commit before
    PYTHONPATH=tests/common pytest -p bitwise --against before.json  # on the change

What every operator of tileattn returned is hashed, test by test; tests that differ are named.
Record twice to find those whose order of summation is not fixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tileattn._common import transforms

_PROPERTY = "hash of results"
_HASHES: dict[str, str] = {}  # by the file's name, wherever that is, and the test's


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="file for the hashes of all results")
    parser.addoption("--against", type=Path, help="such a file, to compare with")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    digest = hashlib.sha1()

    def hashed(call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any, **options: Any) -> Any:
            results = call(*arguments, **options)
            if torch.compiler.is_compiling() or transforms.active():  # no results of their own
                return results
            for tensor in results if isinstance(results, tuple) else (results,):
                if type(tensor) is Tensor and tensor.device.type != "meta":
                    data = tensor.detach().contiguous().flatten()
                    digest.update(data.view(torch.uint8).numpy().tobytes())
            return results

        return recorded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("call", "call_in_place"):
            patch.setattr(transforms, name, hashed(getattr(transforms, name)))
        yield
    item.user_properties.append((_PROPERTY, digest.hexdigest()))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == _PROPERTY:
            path, _, test = report.nodeid.partition("::")
            _HASHES[f"{Path(path).name}::{test}"] = value


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if path := config.getoption("--record"):
        path.write_text(json.dumps(_HASHES, indent=0))
    if path := config.getoption("--against"):
        before = json.loads(path.read_text())
        common = [test for test in _HASHES if test in before]
        differ = [test for test in common if _HASHES[test] != before[test]]
        for test in differ:
            terminalreporter.line(f"differs: {test}")
        terminalreporter.line(f"{len(common) - len(differ)} of {len(common)} tests are bit-equal")
