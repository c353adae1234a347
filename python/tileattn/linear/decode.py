"""Decoding with linear attention: one token at a time, states in a pool."""

from __future__ import annotations

import torch
from torch import Tensor

from tileattn import reference
from tileattn._common import checks, transforms
from tileattn.backend import resolve_backend
from tileattn.linear._checks import State, check_decay, check_state, prepare, require_kernel
from tileattn.linear._op import STEP
from tileattn.linear.feature_maps import FeatureMap

__all__ = ["linear_attention_step"]


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    *,
    slots: Tensor | None = None,
    log_decay: Tensor | None = None,
    feature_map: str | FeatureMap | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """One token of each sequence: updates its state in place and reads it.

    S <- exp(log_decay) S + k v^T, then out = scale * q^T S; with z as in
    :func:`tileattn.linear_attention`, where S is in a pair (S, z). It has no gradient: a backward
    through out raises NotImplementedError (with backend "reference", out requires none).

    Args:
        q: [B, Hq, Dk]; k: [B, Hkv, Dk]; v: [B, Hkv, Dv]; dtypes as in ``linear_attention``.
        state: a pool S [P, Hq, Dk, Dv] float32, or (S, z) with z [P, Hq, Dk]: normalized.
            Contiguous; updated in place, so that it may not require grad (outside of
            ``torch.no_grad()``). The final state of ``linear_attention`` is one.
        slots: int32 [B], the place of each sequence in the pool, each at most once. A negative
            one is padding: out 0, no state changes. By default 0 .. B - 1, with P = B.
        log_decay: [Hq] or [B, Hq].
        feature_map, scale, backend: as in ``linear_attention``.

    Returns:
        out: [B, Hq, Dv] of q's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``linear_attention``.

    Source: Katharopoulos et al., Transformers are RNNs (2020), eqs. 18-20.
    """
    q, k, v = prepare(q, k, v, feature_map)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.require_tensor(name, tensor)
        if tensor.dim() != 3:
            raise ValueError(
                f"{name} is {checks.describe(tensor)}; its layout must be [batch, heads, head_dim]"
            )
    checks.check_qkv(q[:, None], k[:, None], v[:, None], packed=False)
    scale = checks.check_scale(scale, q.shape[-1])
    s, z = _check_pool(state, q, v, slots)
    if log_decay is not None:
        log_decay = _check_decay(log_decay, q)
    chosen = resolve_backend(backend, q.device)
    if chosen == "reference":
        return _reference(q, k, v, s, z, log_decay, slots, scale)
    require_kernel(chosen, k, v, fused=0)
    changed = (s,) if z is None else (s, z)
    out: Tensor = transforms.call_in_place(STEP, changed, q, k, v, s, z, log_decay, slots, scale)
    return out


def _check_pool(
    state: State, q: Tensor, v: Tensor, slots: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    s = state[0] if isinstance(state, (tuple, list)) and len(state) > 0 else state
    places = s.shape[0] if isinstance(s, Tensor) and s.dim() > 0 else 0
    if slots is None:
        places = q.shape[0]
    else:
        checks.require_tensor("slots", slots)
        if slots.dtype != torch.int32:
            raise TypeError(f"slots has dtype {slots.dtype}; it must be torch.int32")
        checks.require_device("slots", slots, q)
        if tuple(slots.shape) != (q.shape[0],):
            raise ValueError(
                f"slots has shape {list(slots.shape)}; it must be [batch] = [{q.shape[0]}]"
            )
    normalize = isinstance(state, (tuple, list))
    shape = (places, q.shape[1], q.shape[2], v.shape[2])
    s, z = check_state("state", state, normalize, shape, q)
    for tensor in (s, z):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError("state is not contiguous; it is updated in place and must be")
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "state requires grad, and is updated in place without a gradient; call "
                "linear_attention_step under torch.no_grad() or with state.detach(), which is the "
                "same memory"
            )
    return s, z


def _check_decay(log_decay: Tensor, q: Tensor) -> Tensor:
    """[H] or [B, H]."""
    checks.require_tensor("log_decay", log_decay)
    if log_decay.dim() == 2:
        check_decay(log_decay[:, None], q[:, None], q.shape[1], causal=True)
    else:
        check_decay(log_decay, q[:, None], q.shape[1], causal=True)
    return log_decay.float()


@torch.no_grad()
def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    z: Tensor | None,
    log_decay: Tensor | None,
    slots: Tensor | None,
    scale: float,
) -> Tensor:
    """One call of the recurrence on the states of the real slots."""
    place = torch.arange(q.shape[0], device=q.device) if slots is None else slots.long()
    real = (place >= 0) & (place < s.shape[0])
    at = place[real]
    decay = (
        log_decay[real][:, None] if log_decay is not None and log_decay.dim() == 2 else log_decay
    )
    part, state = reference.linear_attention(
        q[real][:, None],
        k[real][:, None],
        v[real][:, None],
        log_decay=decay,
        normalize=z is not None,
        scale=scale,
        initial_state=s[at] if z is None else (s[at], z[at]),
        return_final_state=True,
    )
    if isinstance(state, tuple):
        assert z is not None
        s[at], z[at] = state[0].to(s.dtype), state[1].to(z.dtype)
    else:
        s[at] = state.to(s.dtype)
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    out[real] = part[:, 0]
    return out
