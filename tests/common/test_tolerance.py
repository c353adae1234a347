"""The comparison itself: subtly wrong kernels must not pass it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, check
from tolerance import assert_as_exact
from torch import Tensor

from tileattn import reference

CASE = Case(bias="q", sinks=True, options={"causal": True, "window": (20, 0), "softcap": 8.0})

Options = dict[str, Any]


def changed(**other: Any) -> Callable[..., Any]:
    """A kernel that runs with other options than those asked for."""
    return lambda **arguments: reference.attention(**arguments | other)


def late_causal(**arguments: Any) -> Any:
    """One key too many on the diagonal."""
    return reference.attention(**arguments | {"causal": False, "window": (20, 1)})


def lse_off(**arguments: Any) -> Any:
    out, lse = reference.attention(**arguments)
    return out, lse + 1e-4


def detached(name: str) -> Callable[..., Any]:
    """A kernel that forgets part of a gradient."""

    def kernel(**arguments: Any) -> Any:
        tensor: Tensor = arguments[name]
        return reference.attention(**arguments | {name: 0.1 * tensor.detach() + 0.9 * tensor})

    return kernel


WRONG = {
    "window one wider": changed(window=(21, 0)),
    "one key too many": late_causal,
    "scale off by 2 %": changed(scale=1.02 * 32**-0.5),
    "softcap off by 2 %": changed(softcap=8.16),
    "lse off by 1e-4": lse_off,
    "no bias": changed(bias=None),
    "no sinks": changed(sinks=None),
} | {f"gradient of {name} off by 10 %": detached(name) for name in ("q", "k", "v", "bias", "sinks")}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_are_noticed(name: str, dtype: torch.dtype) -> None:
    # A gradient that is not connected at all is an error of autograd, not of the comparison.
    with pytest.raises((AssertionError, RuntimeError)):
        check(CASE, dtype, "cpu", kernel=WRONG[name])


def test_right_kernel_passes(dtype: torch.dtype) -> None:
    check(CASE, dtype, "cpu", kernel=reference.attention)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1.1])
def test_message_names_the_first_bad_coordinate(value: float) -> None:
    expected = torch.ones(2, 3, dtype=torch.float64)
    actual = expected.float()
    actual[1, 2] = value
    with pytest.raises(AssertionError, match=r"x\[1, 2\] is .*, not 1\.0.*1 of 6 elements"):
        assert_as_exact("x", actual, expected, expected)


def test_equal_infinities_are_equal() -> None:
    expected = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
    assert_as_exact("lse", expected.float(), expected, expected)
    with pytest.raises(AssertionError):
        assert_as_exact("lse", torch.tensor([0.0, 0.0]), expected, expected)
