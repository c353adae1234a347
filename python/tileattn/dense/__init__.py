"""Dense tiled attention, its variants, and the merge of partial results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from tileattn import reference
from tileattn._common import softmax
from tileattn._common.precision import autocast_all, autocast_bias
from tileattn.backend import requested_backend
from tileattn.dense import _nested
from tileattn.dense._checks import check_call, check_others, check_parts, window_of
from tileattn.dense._op import FORWARD, Settings, Tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """The keywords of :func:`attention` that do not change what it returns."""

    causal: bool
    window: tuple[int | None, int | None] | None
    sink_tokens: int
    scale: float | None
    softcap: float
    alibi_slopes: Tensor | None
    bias: Tensor | None
    sinks: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    deterministic: bool
    backend: str | None


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]: ...
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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * Q K^T, modified, over the visible keys) V.

    Query i stands at key position p = i + Sk - Sq (aligned bottom-right). It sees key j if
    (p - left <= j <= p + right, or j < sink_tokens) and, when causal, j <= p. The score of a
    visible key goes through, in this order: scale, softcap * tanh(s / softcap),
    - alibi_slope * abs(p - j), + bias; ``sinks[h]`` then joins the row's sum as one more logit
    without a value. A row that sees nothing gives out 0, lse -inf and gradients 0.

    Args:
        q: [B, Sq, Hq, D] float32, float16 or bfloat16, any strides; packed: [Tq, Hq, D].
        k: [B, Sk, Hkv, D] of q's dtype; Hkv divides Hq (query head h reads h // (Hq / Hkv)).
        v: [B, Sk, Hkv, Dv]. D and Dv are multiples of 8 up to 256. Or all three jagged nested
            tensors of such shapes, which are packed sequences without any copy.
        causal: hide keys after the query's own position.
        window: (left, right) keys visible before and after it, each >= 0, or None: unlimited.
        sink_tokens: leading keys that the window never hides.
        scale: factor of the scores; D ** -0.5 by default.
        softcap: 0 for none.
        alibi_slopes: float32 [Hq] or [B, Hq]; not differentiated.
        bias: [B or 1, Hq or 1, Sq or 1, Sk] of q's dtype or float32; not with cu_seqlens.
        sinks: [Hq] learnable logits (attention sinks), any floating dtype.
        cu_seqlens_q: int32 [N + 1] offsets of N packed sequences in the tokens of q, starting at
            0. Tokens past the last offset belong to no sequence: out 0, lse -inf.
        cu_seqlens_k: the same for k and v.
        deterministic: bit-equal gradients from run to run.
        return_lse: also return the logarithm of each row's sum.
        backend: "auto", "cuda", "cpu" or "reference"; None: that of :func:`tileattn.use_backend`.

    Returns:
        out: [B, Sq, Hq, Dv] of q's dtype (packed: [Tq, Hq, Dv]); with ``return_lse`` also lse:
        [B, Sq, Hq] float32, natural logarithm. Both are differentiable, and nested like q.

    Under autocast q, k and v are cast to its dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        NotImplementedError: no kernel for this call; the message says how to get the reference.

    Source: Dao, FlashAttention-2 (2023); ALiBi: Press et al. (2022); softcap: Gemma 2 (2024);
    sinks: gpt-oss (2025); sink tokens: Xiao et al., StreamingLLM (2024).
    """
    nested = q if _nested.any_nested(q, k, v) else None
    if nested is not None:
        q, k, v, cu_seqlens_q, cu_seqlens_k = _nested.unpack(q, k, v, cu_seqlens_q, cu_seqlens_k)
    q, k, v = autocast_all(q, k, v)
    if bias is not None:
        bias = autocast_bias(bias)
    packed = cu_seqlens_q is not None or cu_seqlens_k is not None
    plain = (window, sink_tokens, scale, softcap, causal, deterministic, return_lse)
    chosen, settings, return_lse = check_call(q, k, v, packed, *plain, requested_backend(backend))
    tensors = Tensors(q, k, v, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k)
    check_others(tensors, packed)
    if chosen == "reference":
        out, lse = reference.attention(
            **tensors._asdict(), **_of_reference(settings), return_lse=True
        )
    else:
        if sinks is not None:
            tensors = tensors._replace(sinks=sinks.float())
        out, lse = softmax.forward(FORWARD, tensors, *settings)
    if nested is not None:
        out, lse = _nested.like(out, nested), _nested.like(lse, nested)
    return (out, lse) if return_lse else out


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Joins the results of attention over disjoint sets of keys into that over all of them.

    The same queries attended to several parts of the keys; out is the mean of the partial outs
    weighted by exp(lse). Differentiable in outs and lses. (``sinks`` belong to one part only.)
    lse holds no more than float32 does: beside -1e9 the number of keys is lost, and rows that are
    masked by such a number in every part weigh the parts, not the keys, alike.

    Args:
        outs: n tensors [B, S, H, Dv] of one dtype, or one [n, B, S, H, Dv]; packed: [T, H, Dv].
        lses: n tensors [B, S, H], natural logarithm; -inf where a part saw no key.

    Returns:
        out [B, S, H, Dv] in the dtype of outs, and lse [B, S, H] in that of lses. Where every part
        saw no key: 0 and -inf.

    Raises:
        TypeError, ValueError: parts that do not fit together.

    Source: the rescaling step of FlashAttention (Dao et al., 2022).
    """
    outs, lses = list(outs), list(lses)
    check_parts(outs, lses)
    dtype = torch.promote_types(lses[0].dtype, torch.float32)
    logits = torch.stack(lses).to(dtype)
    peak = logits.detach().amax(0)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights = torch.exp(logits - peak)
    total = weights.sum(0)
    unseen = total == 0
    total = total.masked_fill(unseen, 1.0)
    lse = (peak + torch.log(total)).masked_fill(unseen, -torch.inf)
    # What a part without keys holds is nobody's value.
    values = torch.stack(outs).to(dtype).masked_fill((logits == -torch.inf).unsqueeze(-1), 0.0)
    out = ((weights / total).unsqueeze(-1) * values).sum(0)
    return out.to(outs[0].dtype), lse.to(lses[0].dtype)


def _of_reference(settings: Settings) -> dict[str, Any]:
    """As keywords of :func:`tileattn.reference.attention`."""
    options = settings._asdict()
    del options["deterministic"]
    options["window"] = window_of(options.pop("window_left"), options.pop("window_right"))
    return options
