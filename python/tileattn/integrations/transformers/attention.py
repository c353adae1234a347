"""What each attention layer of a model calls."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from tileattn.backend import requested_backend
from tileattn.capabilities import HEAD_DIM_STEP, MAX_HEAD_DIM
from tileattn.dense import attention
from tileattn.integrations.transformers.mask import TileMask, additive
from tileattn.integrations.transformers.support import count_call, refuse_attention_weights


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    indices: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' ``AttentionInterface`` calls in each layer.

    Args:
        query: [B, Hq, Sq, D]; key, value: [B, Hkv, Sk, D or Dv]. Any head dim: those that are no
            multiple of 8 are padded with zeros, and above 256 channels the reference computes.
        attention_mask: what :func:`make_mask` returned, or a mask of the model's own: bool (True
            where visible) or float (added), broadcastable to [B, Hq, Sq, Sk]. None: every key is
            visible, unless the call itself says otherwise:
        is_causal: without a mask, True hides keys after the query's own position (aligned at the
            last query and key). What the module says of itself is not asked.
        s_aux: [Hq] learnable attention sinks.
        position_bias: added to the scores, broadcastable to [B, Hq, Sq, Sk].
        indices: [B, Sq, n] the only keys that a query sees (DeepSeek's sparse attention).

    Returns:
        [B, Sq, Hq, Dv], and None in place of the attention weights, which never exist. A query
        that sees nothing, as padding on the left, gets the mean of all values, as from "eager".

    Raises:
        NotImplementedError: dropout, attention weights, a paged cache or blocks of keys are asked
            for.
    """
    count_call()
    _refuse(dropout, kwargs)
    queries, keys, dim_v = query.shape[2], key.shape[2], value.shape[3]
    causal, window, bias = False, None, None
    padding = None
    if attention_mask is None:
        causal = bool(is_causal)
    elif isinstance(attention_mask, TileMask) and attention_mask.shape[2:] == (queries, keys):
        causal, window, padding = attention_mask.parts()
        bias = padding
    else:
        bias = _four_dims(additive(attention_mask, query.dtype), query, keys)
    if position_bias is not None:
        position_bias = _four_dims(position_bias, query, keys)
        bias = position_bias if bias is None else position_bias + bias
    if indices is not None:
        bias = _only(indices, bias, query, keys)

    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    backend = _backend(query, value)
    query, key, value = (_kernel_layout(tensor) for tensor in (query, key, value))
    out, lse = attention(
        query,
        key,
        value,
        causal=causal,
        window=window,
        scale=scaling,
        softcap=softcap or 0.0,
        bias=bias,
        sinks=s_aux,
        return_lse=True,
        backend=backend,
    )
    if padding is not None:
        out = _mean_where_blind(out, lse, value)
    return out[..., :dim_v], None


def _refuse(dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise NotImplementedError(
            f"tileattn has no dropout of attention weights, and this model asks for {dropout}: set "
            "its attention dropout to 0 (attention_dropout or attention_probs_dropout_prob in the "
            "config), or call model.eval()."
        )
    if kwargs.get("output_attentions"):
        refuse_attention_weights()
    if kwargs.get("cache") is not None:
        raise NotImplementedError(
            "tileattn does not take the paged cache of continuous batching; use "
            'attn_implementation="sdpa" there.'
        )
    if kwargs.get("block_indices") is not None:
        raise NotImplementedError(
            "tileattn does not take block_indices, the blocks of keys that this model chose for "
            'each query; use attn_implementation="sdpa".'
        )


def _four_dims(bias: Tensor, query: Tensor, keys: int) -> Tensor:
    """A bias that broadcasts to [B, Hq, Sq, Sk] as the [B|1, Hq|1, Sq|1, Sk] that kernels take."""
    bias = bias if bias.dtype == torch.float32 else bias.to(query.dtype)
    bias = bias[(None,) * (4 - bias.dim())]
    return bias.expand(*bias.shape[:3], keys) if bias.shape[3] == 1 else bias


def _only(indices: Tensor, bias: Tensor | None, query: Tensor, keys: int) -> Tensor:
    """The bias where a key is one of ``indices``, and the least number where it is not."""
    chosen = torch.zeros(*indices.shape[:2], keys, dtype=torch.bool, device=indices.device)
    chosen = chosen.scatter(-1, indices.long(), True).unsqueeze(1)
    bias = query.new_zeros(()) if bias is None else bias
    return torch.where(chosen, bias, torch.finfo(bias.dtype).min)


def _mean_where_blind(out: Tensor, lse: Tensor, value: Tensor) -> Tensor:
    """out [B, Sq, Hq, Dv] as a softmax of equal scores gives it where no key is visible."""
    mean = value.mean(1, keepdim=True).repeat_interleave(out.shape[2] // value.shape[2], dim=2)
    return torch.where((lse == -torch.inf)[..., None], mean, out)


def _backend(query: Tensor, value: Tensor) -> str | None:
    """The reference where kernels lack the head dim and no backend was asked for."""
    largest = max(query.shape[-1], value.shape[-1])
    if largest <= MAX_HEAD_DIM or requested_backend(None) != "auto":
        return None
    if largest not in _warned:
        _warned.add(largest)
        warnings.warn(
            f"heads of {largest} channels are more than the {MAX_HEAD_DIM} that tileattn's kernels "
            "take: their attention runs on backend='reference', plain PyTorch that keeps all "
            "scores in memory.",
            stacklevel=3,
        )
    return "reference"


_warned: set[int] = set()  # head dims


def _kernel_layout(tensor: Tensor) -> Tensor:
    """[B, H, S, D] as [B, S, H, D] without a copy, zero-padded to a head dim that kernels take."""
    missing = -tensor.shape[-1] % HEAD_DIM_STEP
    if missing:
        tensor = torch.nn.functional.pad(tensor, (0, missing))
    return tensor.transpose(1, 2)
