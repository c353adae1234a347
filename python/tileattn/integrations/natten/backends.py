"""NATTEN's questions for the configurations of its kernels: here there are none to choose from."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def _no_configs(query: Tensor, key: Tensor, value: Tensor) -> list[Any]:
    """No configuration of this kernel of NATTEN's fits, as on a device that it does not run on."""
    return []


def _no_flex_configs(
    query: Tensor, key: Tensor, value: Tensor, torch_compile: bool = False
) -> list[Any]:
    """The same of FlexAttention."""
    return []


get_configs_for_cutlass_fna = _no_configs
get_configs_for_cutlass_fmha = _no_configs
get_configs_for_cutlass_hopper_fna = _no_configs
get_configs_for_cutlass_hopper_fmha = _no_configs
get_configs_for_cutlass_blackwell_fna = _no_configs
get_configs_for_cutlass_blackwell_fmha = _no_configs
get_configs_for_flex_fna = _no_flex_configs
get_configs_for_flex_fmha = _no_flex_configs
get_bwd_configs_for_cutlass_fna = _no_configs
get_bwd_configs_for_cutlass_fmha = _no_configs
get_bwd_configs_for_cutlass_hopper_fna = _no_configs
get_bwd_configs_for_cutlass_hopper_fmha = _no_configs
get_bwd_configs_for_cutlass_blackwell_fna = _no_configs
get_bwd_configs_for_cutlass_blackwell_fmha = _no_configs
