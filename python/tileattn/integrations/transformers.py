"""``attn_implementation="tileattn"`` for Hugging Face transformers.

    import tileattn.integrations.transformers        # registers the name, nothing else
    model = AutoModel.from_pretrained(name, attn_implementation="tileattn")

Encoders and decoders, padded batches, key/value caches, grouped heads, sliding windows, softcap,
attention sinks and position biases. transformers turns what a model wants to see into a mask once
per forward pass, and hands it to each layer. Ours is, from the cheapest to the dearest:

- None: as for "sdpa", the layer itself says whether it is causal;
- :class:`TileMask`: a causal or sliding-window pattern, which the kernel walks by itself, and a
  bias per key for padding: memory linear in the sequence;
- a float tensor [B, 1, 1, Sk]: padding of a bidirectional model, linear too;
- a float tensor [B, 1, Sq, Sk]: anything else (chunks, packed sequences, custom masks).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
except ImportError as error:
    raise ImportError(
        "tileattn.integrations.transformers needs transformers >= 5; install it with "
        "`pip install 'tileattn[transformers]'`."
    ) from error

from tileattn.capabilities import HEAD_DIM_STEP
from tileattn.dense import attention

NAME = "tileattn"


class TileMask(NamedTuple):
    """A causal mask (aligned bottom-right) that is not written out.

    Attributes:
        padding: float32 [B, Sk], 0 or -inf, or None.
        window: keys that a query sees up to and including its own position; None: all.
    """

    padding: Tensor | None
    window: int | None

    # With a static cache, generate() makes the masks before the model is called, as it would
    # tensors, and the model hands them to make_mask() once more.
    @property
    def ndim(self) -> int:
        return 4

    def contiguous(self) -> TileMask:
        return self


def register() -> None:
    """Makes ``attn_implementation="tileattn"`` known to transformers; importing does it too."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, make_mask)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | TileMask | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Tensor | TileMask | None:
    """What transformers' ``AttentionMaskInterface`` calls once per forward pass.

    Args:
        q_offset: position of the first query; a tensor (unknown here) with a static cache.
        kv_offset: position of the first key.
        mask_function: (batch, head, query, key) -> bool, True where visible.
        attention_mask: bool [B, positions], False where padded; a TileMask is returned as it is.
        allow_is_causal_skip, allow_is_bidirectional_skip: whether the caller can do without a
            tensor that holds the whole mask.
    """
    if isinstance(attention_mask, TileMask):
        return attention_mask
    padding = _padding(attention_mask, kv_length, kv_offset)
    if mask_function is masking_utils.bidirectional_mask_function and allow_is_bidirectional_skip:
        return None if padding is None else padding[:, None, None, :]
    known, window = _causal_window(mask_function)
    # A kernel aligns causal masks at the last query and key; a static cache is longer than that.
    aligned = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    if known and aligned and allow_is_causal_skip:
        if window is not None and kv_length <= window:
            window = None
        if padding is None and window is None and q_length in (1, kv_length):
            return None
        return TileMask(padding, window)
    visible = masking_utils.sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **kwargs,
    )
    return _additive(visible, dtype)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | TileMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' ``AttentionInterface`` calls in each layer.

    Args:
        query: [B, Hq, Sq, D]; key, value: [B, Hkv, Sk, D or Dv].
        attention_mask: what :func:`make_mask` returned, or a mask of the model's own: bool (True
            where visible) or float (added), broadcastable to [B, Hq, Sq, Sk].
        s_aux: [Hq] learnable attention sinks.
        position_bias: added to the scores, broadcastable to [B, Hq, Sq, Sk].

    Returns:
        [B, Sq, Hq, Dv], and None in place of the attention weights, which never exist.

    Raises:
        NotImplementedError: dropout, attention weights or a paged cache are asked for.
    """
    _refuse(dropout, kwargs)
    causal, window, bias = False, None, None
    if isinstance(attention_mask, TileMask):
        causal = True
        window = None if attention_mask.window is None else (attention_mask.window - 1, None)
        if attention_mask.padding is not None:
            bias = attention_mask.padding[:, None, None, :]
    elif attention_mask is not None:
        bias = _additive(attention_mask, query.dtype)
    else:
        asked = getattr(module, "is_causal", True) if is_causal is None else is_causal
        length = query.shape[2]
        causal = bool(asked) and length > 1
        if causal and key.shape[2] > length:  # a cache whose later keys are still empty
            key, value = key[:, :, :length], value[:, :, :length]
            position_bias = None if position_bias is None else position_bias[..., :length]
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias

    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    dim_v = value.shape[-1]
    query, key, value = (_kernel_layout(tensor) for tensor in (query, key, value))
    out = attention(
        query,
        key,
        value,
        causal=causal,
        window=window,
        scale=scaling,
        softcap=softcap or 0.0,
        bias=bias if bias is None or bias.dtype == torch.float32 else bias.to(query.dtype),
        sinks=s_aux,
    )
    assert isinstance(out, Tensor)  # return_lse is off
    return out[..., :dim_v], None


def _refuse(dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise NotImplementedError(
            f"tileattn has no dropout of attention weights, and this model asks for {dropout}: set "
            "its attention dropout to 0 (attention_dropout or attention_probs_dropout_prob in the "
            "config), or call model.eval()."
        )
    if kwargs.get("output_attentions"):
        raise NotImplementedError(
            "tileattn never forms the attention weights; output_attentions=True needs "
            'attn_implementation="eager".'
        )
    if kwargs.get("cache") is not None:
        raise NotImplementedError(
            "tileattn does not take the paged cache of continuous batching; use "
            'attn_implementation="sdpa" there.'
        )


def _padding(mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """float32 [B, Sk] to add, or None where no key is known to be padded."""
    if mask is None:
        return None
    missing = max(0, kv_offset + kv_length - mask.shape[-1])
    mask = torch.nn.functional.pad(mask, (0, missing))[:, kv_offset : kv_offset + kv_length]
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return _additive(mask, torch.float32)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a bool mask is True and -inf where it is False; a float mask as it is."""
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, -torch.inf)


# transformers builds its masks from closures; those of one definition share their code.
_WINDOW_CODE = masking_utils.sliding_window_overlay(1).__code__
_AND_CODE = masking_utils.and_masks(masking_utils.causal_mask_function).__code__


def _causal_window(mask_function: Callable[..., Any]) -> tuple[bool, int | None]:
    """Whether the mask is exactly causal or a causal sliding window, and its window."""
    causal = masking_utils.causal_mask_function
    if mask_function is causal:
        return True, None
    if torch.compiler.is_compiling() or getattr(mask_function, "__code__", None) is not _AND_CODE:
        return False, None
    parts = inspect.getclosurevars(mask_function).nonlocals["mask_functions"]
    is_window = len(parts) == 2 and getattr(parts[0], "__code__", None) is _WINDOW_CODE
    if not is_window or parts[1] is not causal:
        return False, None
    return True, inspect.getclosurevars(parts[0]).nonlocals["sliding_window"]


def _kernel_layout(tensor: Tensor) -> Tensor:
    """[B, H, S, D] as [B, S, H, D] without a copy, zero-padded to a head dim that kernels take."""
    missing = -tensor.shape[-1] % HEAD_DIM_STEP
    if missing:
        tensor = torch.nn.functional.pad(tensor, (0, missing))
    return tensor.transpose(1, 2)


register()
