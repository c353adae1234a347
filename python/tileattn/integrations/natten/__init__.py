"""Functions, modules and settings under the names and with the arguments of NATTEN.

    from tileattn.integrations.natten import na2d

takes the place of ``from natten import na2d``, and so do ``.functional``, ``.modules``,
``.context``, ``.types`` and ``.utils.varlen`` of those of NATTEN. Tensors are
[batch, *grid, heads, head_dim] there as here; windows, strides, dilations and causal axes mean the
same, and module checkpoints load. What only tunes NATTEN's kernels (tile shapes, their backends,
schedules, memory settings) is taken and has no effect; ``backend`` also takes the names of
:func:`tileattn.use_backend`.
"""

from tileattn._common.library import LIBRARY_ERROR
from tileattn.integrations.natten.backends import (
    get_bwd_configs_for_cutlass_blackwell_fmha,
    get_bwd_configs_for_cutlass_blackwell_fna,
    get_bwd_configs_for_cutlass_fmha,
    get_bwd_configs_for_cutlass_fna,
    get_bwd_configs_for_cutlass_hopper_fmha,
    get_bwd_configs_for_cutlass_hopper_fna,
    get_configs_for_cutlass_blackwell_fmha,
    get_configs_for_cutlass_blackwell_fna,
    get_configs_for_cutlass_fmha,
    get_configs_for_cutlass_fna,
    get_configs_for_cutlass_hopper_fmha,
    get_configs_for_cutlass_hopper_fna,
    get_configs_for_flex_fmha,
    get_configs_for_flex_fna,
)
from tileattn.integrations.natten.context import (
    allow_flex_compile,
    allow_flex_compile_backprop,
    are_deterministic_algorithms_enabled,
    disable_flex_compile,
    disable_flex_compile_backprop,
    get_memory_usage_preference,
    is_flex_compile_allowed,
    is_flex_compile_backprop_allowed,
    is_kv_parallelism_in_fused_na_enabled,
    is_memory_usage_default,
    is_memory_usage_strict,
    is_memory_usage_unrestricted,
    set_memory_usage_preference,
    use_deterministic_algorithms,
    use_kv_parallelism_in_fused_na,
)
from tileattn.integrations.natten.functional import (
    attention,
    merge_attentions,
    na1d,
    na2d,
    na3d,
    neighborhood_attention_generic,
)
from tileattn.integrations.natten.modules import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
    NeighborhoodAttentionGeneric,
)

#: The version of NATTEN whose names and arguments these are.
__version__ = "0.21.7"

#: Whether there are compiled kernels: tileattn's, in the place of libnatten.
HAS_LIBNATTEN = LIBRARY_ERROR is None

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "NeighborhoodAttentionGeneric",
    "__version__",
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "attention",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "get_bwd_configs_for_cutlass_blackwell_fmha",
    "get_bwd_configs_for_cutlass_blackwell_fna",
    "get_bwd_configs_for_cutlass_fmha",
    "get_bwd_configs_for_cutlass_fna",
    "get_bwd_configs_for_cutlass_hopper_fmha",
    "get_bwd_configs_for_cutlass_hopper_fna",
    "get_configs_for_cutlass_blackwell_fmha",
    "get_configs_for_cutlass_blackwell_fna",
    "get_configs_for_cutlass_fmha",
    "get_configs_for_cutlass_fna",
    "get_configs_for_cutlass_hopper_fmha",
    "get_configs_for_cutlass_hopper_fna",
    "get_configs_for_flex_fmha",
    "get_configs_for_flex_fna",
    "get_memory_usage_preference",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention_generic",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_kv_parallelism_in_fused_na",
]
