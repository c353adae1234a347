"""The mask of a forward pass: what is visible, as a pattern where it is one.

transformers asks for a mask once per forward pass and hands it to each layer. What was asked for is
all in it: layers are not asked whether they are causal, and no mask at all means that every key is
visible. From the cheapest to the dearest it is

- None: everything is visible;
- :class:`TileMask`: causal or a sliding window, which the kernel walks by itself, and padding as a
  bias per key: memory linear in the sequence;
- the float tensor [B, 1, Sq, Sk] of "eager": anything else (chunks, packed sequences, images
  between words, custom masks, static caches).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import masking_utils

from tileattn.reference.dense import attention_mask as visible_keys

aten = torch.ops.aten
Window = tuple[int | None, int | None]
_KEPT = (aten.detach.default, aten.alias.default, aten.clone.default, aten._to_copy.default)


class TileMask(Tensor):
    """The mask that "eager" would get, float [B, 1, Sq, Sk], not written out.

    Our attention reads the pattern. To anything else it is a tensor of 0 (visible) and the least
    finite number of its dtype (hidden), which is computed when an operator asks for it.

    Attributes:
        causal: keys after the query's own position are hidden (aligned bottom-right).
        window: (left, right) keys visible before and after it, or None: all.
        bias: float32 [B, 1, 1, Sk], 0 or -inf, or None: no key is known to be padding.
    """

    causal: bool
    window: Window | None
    bias: Tensor | None
    _zero: Tensor  # of its dtype and on its device; a subclass must hold a tensor
    _written: Tensor | None  # once a view of it exists, that is the mask

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        zero: Tensor,
        *,
        causal: bool = False,
        window: Window | None = None,
        bias: Tensor | None = None,
    ) -> TileMask:
        mask = Tensor._make_wrapper_subclass(cls, shape, dtype=zero.dtype, device=zero.device)
        mask._zero, mask._written = zero, None
        mask.causal, mask.window, mask.bias = causal, window, bias
        return mask

    def written_out(self) -> Tensor:
        """The tensor, [B, 1, Sq, Sk]."""
        if self._written is not None:
            return self._written
        visible = visible_keys(
            *self.shape[2:], causal=self.causal, window=self.window, device=self.device
        )
        if self.bias is not None:
            visible = visible & (self.bias == 0)
        return self._zero.expand(self.shape).masked_fill(~visible, torch.finfo(self.dtype).min)

    def parts(self) -> tuple[bool, Window | None, Tensor | None]:
        """causal, window and bias, as :func:`tileattn.attention` takes them."""
        if self._written is not None:
            return False, None, self._written
        return self.causal, self.window, self.bias

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        mask = args[0] if args else None
        if isinstance(mask, TileMask) and mask._written is None:
            if func in _KEPT:
                kept = mask._converted(**kwargs)
            else:
                kept = mask._sliced(*args[1:]) if func is aten.slice.Tensor else None
            if kept is not None:
                return kept

        def plain(mask: TileMask) -> Tensor:
            written = mask.written_out()
            if func.is_view or func._schema.is_mutable:
                mask._written = written
            return written

        return func(*tree_map_only(TileMask, plain, args), **tree_map_only(TileMask, plain, kwargs))

    def _converted(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        **_: Any,
    ) -> TileMask | None:
        """The same pattern, for another dtype or device; None: not a float dtype."""
        zero = self._zero.to(device or self.device, dtype or self.dtype)
        if not zero.is_floating_point():
            return None
        bias = None if self.bias is None else self.bias.to(zero.device)
        return self._like(self.shape, zero, bias)

    def _sliced(
        self, dim: int = 0, start: int | None = 0, end: int | None = None, step: int = 1
    ) -> TileMask | None:
        """All of it, or the last queries of all keys; None: that is no pattern any more."""
        dim = dim % self.dim()
        size = self.shape[dim]
        start = start or 0
        start = max(0, start + size) if start < 0 else start
        if step != 1 or (end is not None and end < size) or start >= size:
            return None
        if start > 0 and dim != 2:
            return None
        shape = list(self.shape)
        shape[dim] = size - start
        return self._like(shape, self._zero, self.bias)

    def _like(self, shape: Sequence[int], zero: Tensor, bias: Tensor | None) -> TileMask:
        return TileMask(shape, zero, causal=self.causal, window=self.window, bias=bias)

    # What torch.compile needs to take the mask apart. What was written out stays outside: the parts
    # must be the same before and after a compiled function that looks at its argument.
    def __tensor_flatten__(self) -> tuple[list[str], tuple[bool, Window | None]]:
        return ["_zero"] if self.bias is None else ["_zero", "bias"], (self.causal, self.window)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: tuple[bool, Window | None], shape: Any, stride: Any
    ) -> TileMask:
        causal, window = context
        return TileMask(shape, inner["_zero"], causal=causal, window=window, bias=inner.get("bias"))

    def __repr__(self) -> str:  # type: ignore[override]
        return (
            f"TileMask({list(self.shape)}, causal={self.causal}, window={self.window}, "
            f"padding={self.bias is not None})"
        )


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """What transformers' ``AttentionMaskInterface`` calls once per forward pass.

    Args:
        q_offset: position of the first query; a tensor (unknown here) with a static cache.
        kv_offset: position of the first key.
        mask_function: (batch, head, query, key) -> bool, True where visible.
        attention_mask: bool [B, positions], False where padded.
        allow_is_bidirectional_skip: whether the caller takes None for "everything is visible".
        dtype, device: of the mask.
        kwargs: what else transformers gives to the masks of "eager".

    Returns:
        A :class:`TileMask`, a float tensor [B, 1, Sq, Sk], or None: everything is visible.
    """
    pattern = _pattern(mask_function)
    # A kernel aligns patterns at the last query and key; a static cache is longer than that.
    aligned = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    if pattern is None or not (aligned or pattern == (False, None)):
        return masking_utils.eager_mask(  # type: ignore[no-any-return]
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            dtype=dtype,
            device=device,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            **kwargs,
        )
    causal, window = pattern
    padding = _padding(attention_mask, kv_length, kv_offset)
    if allow_is_bidirectional_skip and padding is None and pattern == (False, None):
        return None
    return TileMask(
        (batch_size, 1, q_length, kv_length),
        torch.zeros((), dtype=dtype, device=device),
        causal=causal,
        window=window,
        bias=padding,
    )


def _padding(mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """float32 [B, 1, 1, Sk], 0 or -inf, or None where no key is known to be padding."""
    if mask is None:
        return None
    missing = max(0, kv_offset + kv_length - mask.shape[-1])
    mask = torch.nn.functional.pad(mask, (0, missing))[:, kv_offset : kv_offset + kv_length]
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return additive(mask[:, None, None, :], torch.float32)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a bool mask is True and -inf where it is False; a float mask as it is."""
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, -torch.inf)


# transformers builds its masks from closures; those of one definition share their code.
_CAUSAL = masking_utils.causal_mask_function
_ALL = masking_utils.bidirectional_mask_function
_AND_CODE = masking_utils.and_masks(_CAUSAL).__code__
_WINDOW_CODE = masking_utils.sliding_window_overlay(1).__code__
_TWO_SIDED_CODE = masking_utils.sliding_window_bidirectional_overlay(1).__code__


def _pattern(mask_function: Callable[..., Any]) -> tuple[bool, Window | None] | None:
    """(causal, window) of a mask that is exactly that, or None."""
    if mask_function is _CAUSAL:
        return True, None
    if mask_function is _ALL:
        return False, None
    if torch.compiler.is_compiling() or getattr(mask_function, "__code__", None) is not _AND_CODE:
        return None
    parts = inspect.getclosurevars(mask_function).nonlocals["mask_functions"]
    if len(parts) != 2:
        return None
    code = getattr(parts[0], "__code__", None)
    if code is _WINDOW_CODE and parts[1] is _CAUSAL:
        return True, (inspect.getclosurevars(parts[0]).nonlocals["sliding_window"] - 1, None)
    if code is _TWO_SIDED_CODE and parts[1] is _ALL:
        size = inspect.getclosurevars(parts[0]).nonlocals["sliding_window"]
        return False, (size, size)
    return None
