"""Fixtures that every family of tests uses."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator

import pytest
import torch
from cases import DTYPE_NAMES
from hypothesis import HealthCheck, settings
from simulator import Simulator

from tileattn import _native, capabilities

# One thread pool for the tests: the machines that run them have few cores.
torch.set_num_threads(min(2, os.cpu_count() or 1))

# Random cases are the same every time, and fixtures may be shared by them.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")


#: Which fifth of transformers' model types this run takes, 0 to 4: by the day.
FIFTH = int(os.environ.get("TILEATTN_TYPES", datetime.date.today().toordinal() % 5))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.line(f"model types of transformers: TILEATTN_TYPES={FIFTH} of 0 to 4")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element that no kernel writes does not look right."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(()).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    """The CUDA kernels on the PTX simulator."""
    if not _native.cuda_kernels():
        pytest.skip("built without CUDA kernels")
    return Simulator()


def _skip_unsupported(request: pytest.FixtureRequest, backend: str) -> None:
    """Skips what the table of capabilities says that the kernels lack.

    A CPU without kernels is no reason to skip: they belong to every installation.
    """
    if backend == "cpu":
        assert not capabilities.why_unavailable(backend), capabilities.why_unavailable(backend)
    if "dtype" in request.fixturenames:
        dtype = DTYPE_NAMES[request.getfixturevalue("dtype")]
        if reason := capabilities.why_not(backend, dtype):
            pytest.skip(f"{backend}, {dtype}: {reason}")


@pytest.fixture(params=["cpu", "cuda"])
def torch_device(request: pytest.FixtureRequest) -> str:
    """Each device that has kernels; CUDA only where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _skip_unsupported(request, request.param)
    return str(request.param)


# What the simulator claims to be. With few multiprocessors the persistent blocks of sm_90 have
# several tiles each, and keys are not split: that is the sm_80 kernels' matter.
SIMULATED = {
    "simulated": {"capability": 80},
    "simulated_hopper": {"capability": 90, "multiprocessors": 2},
}


def _device(request: pytest.FixtureRequest) -> Iterator[str]:
    where = request.param
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _skip_unsupported(request, "cpu" if where == "cpu" else "cuda")
    if where not in SIMULATED:
        yield where
        return
    simulator: Simulator = request.getfixturevalue("simulator")
    before = simulator.calls
    with simulator.kernels(), simulator.configured(**SIMULATED[where]):
        yield "cpu"
    assert simulator.calls > before, "the CUDA kernels were not reached"


@pytest.fixture(params=["cpu", "cuda", *SIMULATED])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the tensors of a test are. Simulated: on the CPU, but the CUDA kernels compute."""
    yield from _device(request)


@pytest.fixture(params=["cpu", "cuda", "simulated"])
def linear_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same for linear attention, which has no kernels of its own for Hopper."""
    yield from _device(request)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that some kernel takes; :func:`device` drops the rest."""
    assert isinstance(request.param, torch.dtype)
    return request.param
