"""The names and signatures of NATTEN's interface, as facts, against tileattn.integrations.natten.

Taken from the source of NATTEN 0.21.7. A name stands in ``NAMES`` with its parameters, or in
``ABSENT`` with the reason why it is not here.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

ROOT = "tileattn.integrations.natten"

_NEIGHBORHOOD = (
    "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, "
    "additional_keys=None, additional_values=None, attention_kwargs=None, backend=None, "
    "q_tile_shape=None, kv_tile_shape=None, backward_q_tile_shape=None, "
    "backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False, "
    "run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False"
)
_ATTENTION = (
    "query, key, value, is_causal=False, scale=None, seqlens_Q=None, seqlens_KV=None, "
    "cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=None, max_seqlen_KV=None, "
    "backend=None, q_tile_size=None, kv_tile_size=None, backward_q_tile_size=None, "
    "backward_kv_tile_size=None, backward_kv_splits=None, backward_use_pt_reduction=False, "
    "run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False"
)
_MODULE = (
    "embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, "
    "qk_scale=None, proj_drop=0.0"
)
_FUNCTIONS = {
    "attention": _ATTENTION,
    "merge_attentions": "outputs, lse_tensors, torch_compile=True, use_autograd_fix=True",
    "na1d": _NEIGHBORHOOD,
    "na2d": _NEIGHBORHOOD,
    "na3d": _NEIGHBORHOOD,
}
_MODULES = {f"NeighborhoodAttention{n}D": _MODULE for n in (1, 2, 3)}
_SETTINGS = {
    "allow_flex_compile": "mode=True, backprop=False",
    "allow_flex_compile_backprop": "mode=True",
    "are_deterministic_algorithms_enabled": "",
    "disable_flex_compile": "",
    "disable_flex_compile_backprop": "",
    "get_memory_usage_preference": "",
    "is_flex_compile_allowed": "",
    "is_flex_compile_backprop_allowed": "",
    "is_kv_parallelism_in_fused_na_enabled": "",
    "is_memory_usage_default": "",
    "is_memory_usage_strict": "",
    "is_memory_usage_unrestricted": "",
    "set_memory_usage_preference": "pref='default'",
    "use_deterministic_algorithms": "mode=True",
    "use_kv_parallelism_in_fused_na": "mode=True",
}
_CONFIGS = {
    f"get_{backward}configs_for_cutlass{arch}_{op}": "query, key, value"
    for backward in ("", "bwd_")
    for arch in ("", "_hopper", "_blackwell")
    for op in ("fna", "fmha")
} | {
    f"get_configs_for_flex_{op}": "query, key, value, torch_compile=False" for op in ("fna", "fmha")
}
_TYPES = [
    *(
        f"{kind}{n}DType{ded}"
        for kind in ("Dimension", "CausalArg")
        for n in (1, 2, 3)
        for ded in ("", "OrDed")
    ),
    *(f"{kind}Type{ded}" for kind in ("Dimension", "CausalArg") for ded in ("", "OrDed")),
    "KernelSchedule",
    "NoneType",
]

#: module -> {name: parameters, or None for what is not called}
NAMES: dict[str, dict[str, str | None]] = {
    "": _FUNCTIONS | _MODULES | _SETTINGS | _CONFIGS | {"HAS_LIBNATTEN": None, "__version__": None},
    "functional": _FUNCTIONS | {"neighborhood_attention_generic": _NEIGHBORHOOD},
    "modules": _MODULES | {"NeighborhoodAttentionGeneric": f"na_dim, {_MODULE}"},
    "context": _SETTINGS | {"MemoryUsagePreference": None, "NattenContext": None},
    "types": dict.fromkeys(_TYPES),
    "backends": _CONFIGS,
    "utils.varlen": {
        "generate_varlen_parameters": "query, key, value, seqlens_Q=None, seqlens_KV=None"
    },
}

_KERNELS = "runs or chooses a kernel of NATTEN's; the functions here choose their own"
_CONFIG = "the type of a configuration of NATTEN's kernels"
_INNER = "serves NATTEN's own code; what it is for has a name at the top"

#: module, or module.name -> why it is not here
ABSENT: dict[str, str] = {
    "attn_merge": _INNER,
    "profiler": "times NATTEN's kernels; `tileattn bench` times these",
    "profiling_utils": "parts of the profiler",
    "token_permute": "reorders tokens for NATTEN's kernels; these read them where they lie",
    "version": _INNER,
    **{
        f"utils.{name}": _INNER
        for name in (
            "checks",
            "device",
            "dtype",
            "environment",
            "log",
            "tensor",
            "testing",
            "tuples",
        )
    },
    **{
        f"backends.{name}": _KERNELS
        for name in (
            *("choose_backend", "choose_fmha_backend", "get_compatible_backends"),
            *("get_compatible_fmha_backends", "can_run_flex_attention"),
            *("flex_fmha", "flex_fna_generic", "na1d_flex", "na2d_flex", "na3d_flex"),
            *(
                f"{prefix}cutlass{arch}_{op}"
                for arch in ("", "_hopper", "_blackwell")
                for prefix, op in (
                    *(("can_run_", "fmha"), ("can_run_", "fna"), ("", "fmha")),
                    *(("", "fna_generic"), ("na1d_", "fna"), ("na2d_", "fna"), ("na3d_", "fna")),
                )
            ),
        )
    },
    **{
        f"types.{name}ConfigType": _CONFIG
        for name in (
            *(
                f"Cutlass{a}F{op}{way}"
                for a in ("", "Hopper", "Blackwell")
                for op in ("na", "mha")
                for way in ("Forward", "Backward")
            ),
            *("FlexFnaForward", "FlexFmhaForward", "FmhaForward"),
        )
    },
    "types.QKTileShapeType": _CONFIG,
}


def parameters(function: object) -> str:
    """As in a definition, without annotations and the keyword-only ones, which we add."""
    assert callable(function)
    found = inspect.signature(function).parameters.values()
    positional = [p for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(p in positional or p.kind is p.KEYWORD_ONLY for p in found)
    return ", ".join(str(p.replace(annotation=p.empty)) for p in positional)


@pytest.mark.parametrize("module", NAMES)
def test_names_and_signatures(module: str) -> None:
    ours = importlib.import_module(f"{ROOT}.{module}".rstrip("."))
    for name, expected in NAMES[module].items():
        assert hasattr(ours, name), name
        if expected is not None:
            assert parameters(getattr(ours, name)) == expected, name


@pytest.mark.parametrize("path", ABSENT)
def test_what_is_absent_is_absent(path: str) -> None:
    """So that no reason outlives the gap that it explains."""
    *modules, name = path.split(".")
    ours = importlib.import_module(".".join([ROOT, *modules]))
    assert not hasattr(ours, name)
    if path not in NAMES:
        with pytest.raises(ImportError):
            importlib.import_module(f"{ROOT}.{path}")


def test_everything_at_the_top_is_named() -> None:
    ours = importlib.import_module(ROOT)
    extra = {"NeighborhoodAttentionGeneric", "neighborhood_attention_generic"}
    assert set(ours.__all__) == set(NAMES[""]) | extra
