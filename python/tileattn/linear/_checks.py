"""Checks of the arguments of linear attention, before any kernel starts."""

from __future__ import annotations

import torch
from torch import Tensor

from tileattn import capabilities
from tileattn._common.checks import (
    FLOAT_DTYPES,
    check_offsets,
    check_qkv,
    describe,
    require_device,
    require_tensor,
)
from tileattn._common.precision import autocast_all
from tileattn.backend import resolve_backend
from tileattn.capabilities import HEAD_DIM_STEP, MAX_CUDA_LINEAR_DIM, MAX_CUDA_TAYLOR2_DIM
from tileattn.linear._op import FEATURE_MAPS, feature_dim
from tileattn.linear.feature_maps import FeatureMap, feature_map_of
from tileattn.reference.masked import has_values

MAX_LINEAR_DIM = 1024

State = Tensor | tuple[Tensor, Tensor]


def check_inputs(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> int:
    """Returns the number of sequences."""
    check_qkv(q, k, v, packed=False)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"k has {k.shape[1]} tokens; it must have those of q, {q.shape[1]}")
    if cu_seqlens is None:
        return q.shape[0]
    require_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens has dtype {cu_seqlens.dtype}; it must be torch.int32")
    require_device("cu_seqlens", cu_seqlens, q)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens has shape {list(cu_seqlens.shape)}; it must be [sequences + 1]"
        )
    if q.shape[0] != 1:
        raise ValueError(
            f"q has batch {q.shape[0]}; with cu_seqlens it must be 1, all sequences in a row"
        )
    if has_values(cu_seqlens):
        check_offsets("cu_seqlens", cu_seqlens.tolist(), q.shape[1])
    return cu_seqlens.shape[0] - 1


def check_decay(log_decay: Tensor, k: Tensor, heads: int, causal: bool) -> None:
    """A float tensor [H] or [B, T, H], at most 0, of a causal call."""
    require_tensor("log_decay", log_decay)
    if log_decay.dtype not in FLOAT_DTYPES:
        raise TypeError(f"log_decay has dtype {log_decay.dtype}; it must be a floating dtype")
    require_device("log_decay", log_decay, k)
    full = (*k.shape[:2], heads)
    if tuple(log_decay.shape) != ((heads,) if log_decay.dim() == 1 else full):
        raise ValueError(
            f"log_decay has shape {list(log_decay.shape)}; allowed: [heads] = [{heads}] or "
            f"[batch, tokens, heads] = {list(full)}"
        )
    if not causal:
        raise ValueError("log_decay is given with causal=False; a decay needs an order in time")
    if has_values(log_decay) and not bool((log_decay <= 0).all()):  # true for NaN
        raise ValueError(
            f"log_decay has values up to {float(log_decay.max()):g}; it must be <= 0 (a decay "
            "exp(log_decay) of at most 1)"
        )


def check_state(
    name: str, state: State, normalize: bool, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Returns (S, z): float32 [*shape] and, where normalized, [*shape[:-1]]."""
    layout = "[sequences, heads, key channels, value channels]"
    if normalize:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{name} is {_describe(state)}; with normalize=True it must be a pair (S, z)"
            )
        s, z = state
        _check_part(f"{name}[1]", z, shape[:-1], layout.removesuffix(", value channels]") + "]", s)
        _check_part(f"{name}[0]", s, shape, layout, like)
        return s, z
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} is {_describe(state)}; it must be one tensor (normalize=False)")
    _check_part(name, state, shape, layout, like)
    return state, None


def _describe(state: object) -> str:
    if isinstance(state, (tuple, list)):
        return f"a {type(state).__name__} of {len(state)}"
    return describe(state)


def _check_part(
    name: str, tensor: Tensor, shape: tuple[int, ...], layout: str, like: Tensor
) -> None:
    require_tensor(name, tensor)
    exact = torch.float64 if like.dtype == torch.float64 else torch.float32
    if tensor.dtype != exact:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be {exact}")
    require_device(name, tensor, like)
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; it must be {layout} = {list(shape)}"
        )


def fused_map(feature_map: str | FeatureMap | None, q: Tensor, backend: str | None) -> int:
    """The place in FEATURE_MAPS of a map that the kernel applies itself; 0 where it does not."""
    if feature_map != "taylor2":
        return 0
    require_tensor("q", q)
    chosen = resolve_backend(backend, q.device)
    missing = capabilities.why_not(chosen, "taylor2 inside of the kernel")
    return 0 if missing else FEATURE_MAPS.index(feature_map)


def prepare(
    q: Tensor, k: Tensor, v: Tensor, feature_map: str | FeatureMap | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Autocast, then the feature map, whose results keep the dtype."""
    q, k, v = autocast_all(q, k, v)
    function = feature_map_of(feature_map)
    if function is None:
        return q, k, v
    for name, tensor in (("q", q), ("k", k)):
        require_tensor(name, tensor)
    return function(q).to(q.dtype), function(k).to(k.dtype), v


def check_initial(
    state: State | None, normalize: bool, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if state is None:
        return None, None
    return check_state("initial_state", state, normalize, shape, like)


def require_kernel(backend: str, k: Tensor, v: Tensor, fused: int) -> None:
    """What only the kernels cannot do; the reference takes it. fused: a place in FEATURE_MAPS."""
    capabilities.require(backend, "linear attention", "linear attention")
    for name, size in (("k", feature_dim(fused, k.shape[-1])), ("v", v.shape[-1])):
        if size > MAX_LINEAR_DIM:
            raise ValueError(
                f"{name} has head_dim {size}; allowed on backend {backend!r}: up to "
                f"{MAX_LINEAR_DIM} (backend='reference' takes any)"
            )
    if fused and k.shape[-1] > MAX_CUDA_TAYLOR2_DIM:
        feature = "taylor2, large head dims"
        capabilities.require(backend, feature, f"taylor2 of head_dim {k.shape[-1]}")
    for name, size in (("k", k.shape[-1]), ("v", v.shape[-1])):
        if size > MAX_CUDA_LINEAR_DIM or size % HEAD_DIM_STEP != 0:
            capabilities.require(
                backend, "linear attention, any head dim", f"{name} of head_dim {size}"
            )
    capabilities.require_dtype(backend, "tensors", k.dtype)
