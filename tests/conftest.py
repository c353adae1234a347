"""Fixtures that every family of tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# One thread pool for the tests: the machines that run them have few cores.
torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element that no kernel writes does not look right."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(()).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that has kernels; CUDA only where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that some kernel takes; :func:`cases.skip_unsupported` drops the rest."""
    assert isinstance(request.param, torch.dtype)
    return request.param
