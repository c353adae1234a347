"""NATTEN's settings of the process.

Gradients are deterministic, bit-equal from run to run, where deterministic mode is on, where
key-value parallelism is off (NATTEN's way to it), or under
``torch.use_deterministic_algorithms``. The other settings are kept and have no effect.
"""

from __future__ import annotations

import warnings
from enum import Enum

import torch


class MemoryUsagePreference(Enum):
    """How much memory NATTEN's key-value parallelism may take."""

    Default = 0
    Strict = 1
    Unrestricted = 2


class NattenContext:
    """The settings; :meth:`reset` brings the defaults back."""

    is_deterministic_mode_enabled: bool = False
    is_kv_parallelism_enabled: bool = True
    training_memory_preference: MemoryUsagePreference = MemoryUsagePreference.Default
    flex_compile_allowed: bool = False
    flex_compile_backprop_allowed: bool = False

    @staticmethod
    def reset() -> None:
        NattenContext.is_deterministic_mode_enabled = False
        NattenContext.is_kv_parallelism_enabled = True
        NattenContext.training_memory_preference = MemoryUsagePreference.Default
        NattenContext.flex_compile_allowed = False
        NattenContext.flex_compile_backprop_allowed = False


def deterministic_gradients() -> bool:
    """Whether the functions of this package ask for them."""
    return (
        NattenContext.is_deterministic_mode_enabled
        or not NattenContext.is_kv_parallelism_enabled
        or torch.are_deterministic_algorithms_enabled()
    )


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Switches deterministic mode."""
    NattenContext.is_deterministic_mode_enabled = mode


def are_deterministic_algorithms_enabled() -> bool:
    """Whether deterministic mode is on."""
    return NattenContext.is_deterministic_mode_enabled


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Allows key-value parallelism, or not: then gradients are deterministic.

    Under ``torch.use_deterministic_algorithms`` it is not switched on, with a warning.

    Raises:
        RuntimeError: it is switched on in deterministic mode.
    """
    if not mode:
        NattenContext.is_kv_parallelism_enabled = False
    elif torch.are_deterministic_algorithms_enabled():
        warnings.warn(
            "key-value parallelism stays as it is under torch.use_deterministic_algorithms(True)",
            stacklevel=2,
        )
    elif NattenContext.is_deterministic_mode_enabled:
        raise RuntimeError(
            "key-value parallelism is not deterministic; call use_deterministic_algorithms(False) "
            "first"
        )
    else:
        NattenContext.is_kv_parallelism_enabled = True


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    """Whether key-value parallelism is allowed."""
    return NattenContext.is_kv_parallelism_enabled


def set_memory_usage_preference(pref: str = "default") -> None:
    """Sets how much memory key-value parallelism may take.

    Args:
        pref: "default", "strict" or "unrestricted".

    Raises:
        ValueError: another value.
    """
    allowed = {choice.name.lower(): choice for choice in MemoryUsagePreference}
    if pref not in allowed:
        raise ValueError(f"pref is {pref!r}; allowed: {', '.join(map(repr, allowed))}")
    NattenContext.training_memory_preference = allowed[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    """What :func:`set_memory_usage_preference` set."""
    return NattenContext.training_memory_preference


def is_memory_usage_default() -> bool:
    """Whether the preference is "default"."""
    return get_memory_usage_preference() == MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Whether the preference is "strict"."""
    return get_memory_usage_preference() == MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is "unrestricted"."""
    return get_memory_usage_preference() == MemoryUsagePreference.Unrestricted


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Allows NATTEN to compile FlexAttention, and with ``backprop`` its gradients."""
    NattenContext.flex_compile_allowed = mode
    NattenContext.flex_compile_backprop_allowed = mode and backprop


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """The same for the gradients alone; they need the forward to be allowed."""
    allow_flex_compile(is_flex_compile_allowed(), mode)


def disable_flex_compile() -> None:
    """Allows neither."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """Does not allow the gradients."""
    allow_flex_compile_backprop(False)


def is_flex_compile_allowed() -> bool:
    """Whether :func:`allow_flex_compile` is in force."""
    return NattenContext.flex_compile_allowed


def is_flex_compile_backprop_allowed() -> bool:
    """Whether it is for gradients."""
    return NattenContext.flex_compile_backprop_allowed
