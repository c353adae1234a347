"""Linear attention: a state of fixed size takes the place of the keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, overload

from torch import Tensor

from tileattn import reference
from tileattn._common import checks, transforms
from tileattn.backend import resolve_backend
from tileattn.linear._checks import (
    State,
    check_decay,
    check_initial,
    check_inputs,
    fused_map,
    prepare,
    require_kernel,
)
from tileattn.linear._op import FORWARD, SEGMENT, feature_dim
from tileattn.linear.feature_maps import FeatureMap

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["linear_attention", "segment_state"]


class Options(TypedDict, total=False):
    """The keywords of :func:`linear_attention` that do not change what it returns."""

    log_decay: Tensor | None
    feature_map: str | FeatureMap | None
    normalize: bool
    causal: bool
    scale: float | None
    initial_state: State | None
    cu_seqlens: Tensor | None
    backend: str | None


@overload
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_final_state: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_final_state: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, State]: ...
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    feature_map: str | FeatureMap | None = None,
    normalize: bool = False,
    causal: bool = True,
    scale: float | None = None,
    initial_state: State | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, State]:
    """out_t = scale * q_t^T S_t with S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T.

    With ``normalize`` out_t = (q_t^T S_t) / (q_t^T z_t), z_t = exp(log_decay_t) z_{t-1} + k_t, and
    0 where the denominator is 0. Not causal: every query reads the state after the last token.

    Args:
        q: [B, T, Hq, Dk] float32, float16 or bfloat16, any strides.
        k: [B, T, Hkv, Dk] of q's dtype; Hkv divides Hq (query head h reads h // (Hq / Hkv)).
        v: [B, T, Hkv, Dv]. Dk and Dv are at most 1024.
        log_decay: [Hq], constant in time, or [B, T, Hq]; <= 0, any floating dtype, used in
            float32; differentiable. Needs ``causal``. :mod:`tileattn.decays` has the usual ones.
        feature_map: applied to q and k first: "elu1", "relu", "taylor2", or a function or module
            [..., D] -> [..., Dk]; see :mod:`tileattn.feature_maps`. The kernels never build the
            1 + D + D^2 features of "taylor2" in memory; on CUDA D is 8 or 16.
        normalize: divide by the sum of weights. Meant for features >= 0.
        causal: token t sees tokens up to t; otherwise all of its sequence.
        scale: factor of out; Dk ** -0.5 by default. Cancels where normalized.
        initial_state: S [N, Hq, Dk, Dv] float32 before the first token, or with ``normalize``
            (S, z), z [N, Hq, Dk]; N sequences. Zero by default. Differentiable.
        return_final_state: also return the state after the last token. Differentiable.
        cu_seqlens: int32 [N + 1] offsets of N packed sequences in the tokens, starting at 0, with
            B = 1. Tokens past the last offset belong to no sequence: out 0.
        backend: "auto", "cuda", "cpu" or "reference"; None: that of :func:`tileattn.use_backend`.

    Returns:
        out: [B, T, Hq, Dv] of q's dtype; with ``return_final_state`` also the state, like
        ``initial_state``. Sums are accumulated in float32.

    Under autocast q, k and v are cast to its dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        NotImplementedError: no kernel for this call; the message says how to get the reference.

    Source: Katharopoulos et al., Transformers are RNNs (2020); chunks and decay: Qin et al.,
    Lightning Attention-2 (2024), algorithms 1 and 2; Sun et al., Retentive Network (2023).
    """
    normalize = checks.check_flag("normalize", normalize)
    causal = checks.check_flag("causal", causal)
    return_final_state = checks.check_flag("return_final_state", return_final_state)
    fused = fused_map(feature_map, q, backend)
    q, k, v = prepare(q, k, v, None if fused else feature_map)
    sequences = check_inputs(q, k, v, cu_seqlens)
    dim = feature_dim(fused, k.shape[-1])
    scale = checks.check_scale(scale, dim)
    heads = q.shape[2]
    if log_decay is not None:
        check_decay(log_decay, k, heads, causal)
    s, z = check_initial(initial_state, normalize, (sequences, heads, dim, v.shape[-1]), q)

    chosen = resolve_backend(backend, q.device)
    if chosen == "reference":
        return reference.linear_attention(
            q,
            k,
            v,
            log_decay=log_decay,
            normalize=normalize,
            causal=causal,
            scale=scale,
            initial_state=initial_state,
            return_final_state=return_final_state,
            cu_seqlens=cu_seqlens,
        )
    require_kernel(chosen, k, v, fused)
    log_decay = None if log_decay is None else log_decay.float()
    inputs = (q, k, v, log_decay, s, z, cu_seqlens, scale, causal, normalize, fused)
    out: Tensor
    out, _, last_s, last_z = transforms.call(FORWARD, *inputs)
    if not return_final_state:
        return out
    return out, ((last_s, last_z) if normalize else last_s)


def segment_state(
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    feature_map: str | FeatureMap | None = None,
    normalize: bool = False,
    initial_state: State | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> State:
    """The state after the tokens, without any output: what later tokens start from.

    The building block of what runs in parallel over time, on one device or several: states of
    segments that started from zero join as S = exp(sum of log_decay over the later) * S_earlier
    + S_later. Differentiable in every floating argument.

    Args:
        k: [B, T, Hkv, Dk]; v: [B, T, Hkv, Dv].
        log_decay: [H] or [B, T, H]; its H, else that of ``initial_state``, else Hkv, is the
            number of heads of the state, a multiple of Hkv.
        feature_map: applied to k. Others: as in :func:`linear_attention`.

    Returns:
        S [N, H, Dk, Dv] float32, or with ``normalize`` (S, z), z [N, H, Dk].

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`linear_attention`.

    Source: Sun et al., Linear Attention Sequence Parallelism (2024).
    """
    normalize = checks.check_flag("normalize", normalize)
    fused = fused_map(feature_map, k, backend)
    k, _, v = prepare(k, k, v, None if fused else feature_map)
    sequences = check_inputs(k, k, v, cu_seqlens)
    dim = feature_dim(fused, k.shape[-1])
    heads = k.shape[2]
    given = initial_state[0] if isinstance(initial_state, (tuple, list)) else initial_state
    if isinstance(log_decay, Tensor) and log_decay.dim() > 0:
        heads = log_decay.shape[-1]
    elif isinstance(given, Tensor) and given.dim() == 4:
        heads = given.shape[1]
    if heads == 0 or heads % k.shape[2] != 0:
        raise ValueError(f"the state has {heads} heads; those of k, {k.shape[2]}, must divide them")
    if log_decay is not None:
        check_decay(log_decay, k, heads, causal=True)
    s, z = check_initial(initial_state, normalize, (sequences, heads, dim, v.shape[-1]), k)

    chosen = resolve_backend(backend, k.device)
    if chosen == "reference":
        q = k.new_zeros((*k.shape[:2], heads, k.shape[-1]))
        _, state = reference.linear_attention(
            q,
            k,
            v,
            log_decay=log_decay,
            normalize=normalize,
            initial_state=initial_state,
            return_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        return state
    require_kernel(chosen, k, v, fused)
    log_decay = None if log_decay is None else log_decay.float()
    inputs = (k, v, log_decay, s, z, cu_seqlens, heads, normalize, fused)
    last_s, last_z = transforms.call(SEGMENT, *inputs)
    return (last_s, last_z) if normalize else last_s
