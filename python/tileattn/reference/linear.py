"""Linear attention from its definition, token by token; gradients come from autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from tileattn.reference.precision import exact_dtype, no_autocast

State = Tensor | tuple[Tensor, Tensor]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    feature_map: Callable[[Tensor], Tensor] | None = None,
    normalize: bool = False,
    causal: bool = True,
    scale: float | None = None,
    initial_state: State | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, State]:
    """As :func:`tileattn.linear_attention`, also in float64.

    Args:
        feature_map: applied to q and k; a function or module.
        compute_dtype: dtype of every step; by default float32, or float64 for float64 inputs.
            States have this dtype too.
    """
    dtype = compute_dtype or exact_dtype(q.dtype)
    result_dtype = q.dtype
    if feature_map is not None:
        q, k = feature_map(q), feature_map(k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    q = scale * q.to(dtype)
    k, v = (x.to(dtype).repeat_interleave(group, dim=2) for x in (k, v))
    decay = torch.ones_like(q[..., 0]) if log_decay is None else log_decay.to(dtype).exp()
    decay = decay.expand(q.shape[:-1])
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    s, z = _initial(initial_state, sequences, q, v)
    recur = _causal if causal else _bidirectional

    with no_autocast(q.device):  # it would round the products
        if cu_seqlens is None:
            numerator, denominator, s, z = recur(q, k, v, decay, s, z)
        else:
            parts = []
            for n, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
                at, of = slice(begin, end), slice(n, n + 1)
                parts.append(recur(q[:, at], k[:, at], v[:, at], decay[:, at], s[of], z[of]))
            rest = q.shape[1] - int(cu_seqlens[-1])  # tokens of no sequence
            numerators, denominators, ss, zs = zip(*parts, strict=True) if parts else ((),) * 4
            numerator = torch.cat([*numerators, v.new_zeros(1, rest, *v.shape[2:])], 1)
            denominator = torch.cat([*denominators, v.new_zeros(1, rest, v.shape[2])], 1)
            s, z = torch.cat([s[:0], *ss]), torch.cat([z[:0], *zs])
        out = numerator
        if normalize:
            empty = denominator == 0
            out = out / denominator.masked_fill(empty, 1.0).unsqueeze(-1)
            out = out.masked_fill(empty.unsqueeze(-1), 0.0)
    out = out.to(result_dtype)
    if not return_final_state:
        return out
    return out, ((s, z) if normalize else s)


def _initial(state: State | None, sequences: int, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """S [N, H, Dk, Dv] and z [N, H, Dk], zero where not given."""
    s = q.new_zeros(sequences, *q.shape[2:], v.shape[-1])
    z = q.new_zeros(sequences, *q.shape[2:])
    if isinstance(state, tuple):
        return state[0].to(s.dtype), state[1].to(z.dtype)
    return (s if state is None else state.to(s.dtype)), z


def _causal(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, s: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q S and q z after each token, and the last S and z."""
    numerators, denominators = [v[:, :0]], [v[:, :0, :, 0]]
    for t in range(q.shape[1]):
        s = decay[:, t, :, None, None] * s + k[:, t, :, :, None] * v[:, t, :, None, :]
        z = decay[:, t, :, None] * z + k[:, t]
        numerators.append(torch.einsum("bhd,bhde->bhe", q[:, t], s)[:, None])
        denominators.append(torch.einsum("bhd,bhd->bh", q[:, t], z)[:, None])
    return torch.cat(numerators, 1), torch.cat(denominators, 1), s, z


def _bidirectional(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, s: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every query sees the state after the last token; there is no decay."""
    del decay
    s = s + torch.einsum("bthd,bthe->bhde", k, v)
    z = z + k.sum(1)
    numerator = torch.einsum("bthd,bhde->bthe", q, s)
    return numerator, torch.einsum("bthd,bhd->bth", q, z), s, z
