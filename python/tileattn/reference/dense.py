"""Dense attention from its definition; gradients come from autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tileattn.reference import masked
from tileattn.reference.precision import exact_dtype, no_autocast


def attention_mask(
    len_q: int,
    len_k: int,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink_tokens: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """bool [len_q, len_k], True where query i sees key j."""
    position = torch.arange(len_q, device=device)[:, None] + (len_k - len_q)  # bottom-right
    key = torch.arange(len_k, device=device)[None, :]
    left, right = window if window is not None else (None, None)
    visible = torch.ones(len_q, len_k, dtype=torch.bool, device=device)
    if left is not None:
        visible = visible & (key >= position - left)
    if right is not None:
        visible = visible & (key <= position + right)
    visible = visible | (key < sink_tokens)
    if causal:
        visible = visible & (key <= position)
    return visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink_tokens: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As :func:`tileattn.attention`, for any head dim and also in float64.

    Args:
        compute_dtype: dtype of every step; by default float32, or float64 for float64 inputs.
            lse has this dtype too.
    """
    del deterministic  # always
    dtype = compute_dtype or exact_dtype(q.dtype)
    result_dtype = q.dtype
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def one(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor]:
        visible = attention_mask(
            q.shape[1],
            k.shape[1],
            causal=causal,
            window=window,
            sink_tokens=sink_tokens,
            device=q.device,
        )
        if bias is not None:
            visible = visible & (bias != -torch.inf)
        scores = _scores(q, k, scale, softcap, slopes, bias, visible)
        return _softmax_values(scores, v, sinks, visible)

    with no_autocast(q.device):  # it would round the products
        if cu_seqlens_q is None or cu_seqlens_k is None:
            out, lse = one(q, k, v, alibi_slopes)
        else:
            out, lse = _packed(one, q, k, v, alibi_slopes, cu_seqlens_q, cu_seqlens_k)
    out = out.to(result_dtype)
    return (out, lse) if return_lse else out


def _scores(
    q: Tensor,
    k: Tensor,
    scale: float,
    softcap: float,
    slopes: Tensor | None,
    bias: Tensor | None,
    visible: Tensor,
) -> Tensor:
    """[B, H, Sq, Sk]: scale, softcap, ALiBi, bias, in this order; -inf where hidden."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = scale * masked.scores(q.transpose(1, 2), k.transpose(1, 2), visible)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        position = torch.arange(q.shape[1], device=q.device)[:, None] + (k.shape[1] - q.shape[1])
        distance = (position - torch.arange(k.shape[1], device=q.device)).abs()
        scores = scores - slopes.to(scores.dtype)[..., None, None] * distance
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.masked_fill(~visible, -torch.inf)


def _softmax_values(
    scores: Tensor, v: Tensor, sinks: Tensor | None, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """out [B, Sq, H, Dv] and lse [B, Sq, H] of scores [B, H, Sq, Sk] that are -inf where hidden."""
    v = v.repeat_interleave(scores.shape[1] // v.shape[2], dim=2)
    # The sink is one more key without a value; -inf if there is none.
    if sinks is None:
        sinks = scores.new_full((scores.shape[1],), -torch.inf)
    sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    logits = torch.cat([scores, sink], dim=-1)
    peak = logits.detach().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights = torch.exp(logits - peak)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (peak + torch.log(total)).masked_fill(empty, -torch.inf)
    weights = (weights[..., :-1] / total).masked_fill(~visible, 0.0)  # total may not be a number
    out = masked.mix(weights, v.transpose(1, 2), visible)
    return out.transpose(1, 2), lse.squeeze(-1).transpose(1, 2)


def _packed(
    one: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
) -> tuple[Tensor, Tensor]:
    """Each sequence on its own; tokens of q after the last one give out 0, lse -inf."""
    outs, lses = [], []
    offsets_q, offsets_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for n in range(len(offsets_q) - 1):
        rows = slice(offsets_q[n], offsets_q[n + 1])
        keys = slice(offsets_k[n], offsets_k[n + 1])
        own = slopes[n] if slopes is not None and slopes.dim() == 2 else slopes
        out, lse = one(q[None, rows], k[None, keys], v[None, keys], own)
        outs.append(out[0])
        lses.append(lse[0])
    rest = q.shape[0] - offsets_q[-1]
    outs.append(v.new_zeros(rest, q.shape[1], v.shape[-1]))
    lses.append(q.new_full((rest, q.shape[1]), -torch.inf))
    return torch.cat(outs), torch.cat(lses)
