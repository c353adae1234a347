"""Checks of arguments, before any kernel starts.

Each message names the argument, says what it was and what is allowed. Values inside a tensor are
looked at only where that costs nothing: on the CPU, and not while torch.compile traces. Numbers,
flags and sequences of them may be Python's or numpy's; the checks return Python's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tileattn.reference.masked import has_values

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Positions are 32-bit in the kernels, with room for arithmetic on them.
MAX_TOKENS = 1 << 29
FLOAT32 = torch.finfo(torch.float32)
_LONGEST = 60  # characters of a value in a message
_MOST_KEPT = 4096  # results of a check

Window = tuple[int | None, int | None]


def describe(value: object) -> str:
    """What a bad argument was, for a message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)} on {value.device}"
    text = " ".join(repr(value).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{text} ({type(value).__name__})"


def plain(value: Any) -> Any:
    """numpy's numbers and bools, and its arrays, as Python's and lists of them; others as given."""
    if isinstance(value, (int, float)) or not isinstance(value, (np.generic, np.ndarray)):
        return value
    if torch.compiler.is_compiling():
        raise TypeError(
            "a number, flag or sequence of numpy's is among the arguments; torch.compile traces "
            "these as tensors, so pass Python's: int(), float(), bool() or .tolist()"
        )
    # tolist() would leave this one as it is.
    return float(value) if isinstance(value, np.longdouble) else value.tolist()


def entries(value: Any) -> tuple[Any, ...] | None:
    """Those of a sequence or a numpy array; None where the value is neither."""
    value = plain(value)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return None
    return tuple(map(plain, value))


def is_int(value: object) -> bool:
    # Under torch.compile a size may be symbolic.
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def wrong_type(name: str, value: object, allowed: str, axis: int | None = None) -> TypeError:
    """The error for a plain argument of another type, maybe in its entry for a grid axis."""
    where = "" if axis is None else f" on axis {axis}"
    hint = (
        "; a tensor's value is not read, as that would wait for its device: pass .tolist()"
        if isinstance(value, Tensor)
        else ""
    )
    return TypeError(f"{name} is {describe(value)}{where}; it must be {allowed}{hint}")


def check_int(name: str, value: Any, minimum: int = 1) -> int:
    """Returns ``value`` as an int >= minimum."""
    number = plain(value)
    if not is_int(number):
        raise wrong_type(name, value, f"an int >= {minimum}")
    if number < minimum:
        raise ValueError(f"{name} is {number}; it must be >= {minimum}")
    result: int = number
    return result


def known(condition: bool) -> bool:
    """Whether it holds of the sizes that are known: not of symbolic ones that may be otherwise.

    To ask those would bound them, and torch.export refuses a ``Dim`` without that bound. Kernels
    look at real sizes themselves.
    """
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

    sure: bool = statically_known_true(condition)
    return sure


def remembered(check: Callable[..., Any]) -> Callable[..., Any]:
    """``check(q, k, v, *plain)``, whose result is kept for other tensors of the same kind.

    What it returns may depend on the tensors' shapes, dtypes, devices and layouts and on the plain
    arguments alone. Errors are not kept. Small calls would take longer to check than to run.
    """
    kept: dict[Any, Any] = {}

    def checked(q: Any, k: Any, v: Any, *plain: Any) -> Any:
        ordinary = type(q) is type(k) is type(v) is Tensor and not torch.compiler.is_compiling()
        if not ordinary or q.is_nested or k.is_nested or v.is_nested:
            return check(q, k, v, *plain)
        # 1, 1.0 and True are equal, but not all of them are allowed.
        types = tuple(map(type, plain))
        if tuple in types:
            types += tuple(type(x) for given in plain if type(given) is tuple for x in given)
        kinds = (q.shape, q.dtype, k.shape, k.dtype, v.shape, v.dtype)
        places = (q.device, k.device, v.device, q.layout, k.layout, v.layout)
        key = (kinds, places, plain, types)
        try:
            found = kept.get(key)
        except TypeError:  # an argument without a hash
            return check(q, k, v, *plain)
        if found is None:
            if len(kept) >= _MOST_KEPT:
                kept.clear()
            found = kept[key] = check(q, k, v, *plain)
        return found

    return checked


def require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {describe(value)}; it must be a tensor")
    if value.is_nested:
        raise TypeError(
            f"{name} is a nested tensor of layout {value.layout}; only tileattn.attention takes "
            "those, jagged, as q, k and v. Pass values() and, where there are such, cu_seqlens"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{name} has layout {value.layout}; it must be dense: pass .to_dense()")


def check_qkv(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    """Ranks, dtypes, devices and shapes of q, k and v agree with one another."""
    rank, layout = (
        (3, "[tokens, heads, head_dim] with cu_seqlens")
        if packed
        else (4, "[batch, tokens, heads, head_dim]")
    )
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require_tensor(name, tensor)
        if tensor.dim() != rank:
            raise ValueError(f"{name} is {describe(tensor)}; its layout must be {layout}")
    check_agreement(q, k, v, packed)


def check_agreement(q: Tensor, k: Tensor, v: Tensor, packed: bool = False) -> None:
    """What q, k and v of the right ranks must have in common."""
    if q.dtype not in FLOAT_DTYPES:
        raise TypeError(f"q is {describe(q)}; allowed dtypes: float16, bfloat16, float32, float64")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; it must have the dtype of q, {q.dtype}"
            )
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on q's device, {q.device}")
    if not packed:
        for name, tensor in (("k", k), ("v", v)):
            if tensor.shape[0] != q.shape[0]:
                raise ValueError(
                    f"{name} has batch {tensor.shape[0]}; it must have that of q, {q.shape[0]}"
                )
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"v has shape {list(v.shape)}; all but its last dimension must be as in k, "
            f"{list(k.shape)}"
        )
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"k has head_dim {k.shape[-1]}; it must have the head_dim of q, {q.shape[-1]}"
        )
    _check_sizes(q, k, v)


def _check_sizes(q: Tensor, k: Tensor, v: Tensor) -> None:
    heads, heads_kv = q.shape[-2], k.shape[-2]
    if heads_kv == 0 or heads % heads_kv != 0:
        raise ValueError(
            f"k and v have {heads_kv} heads; the number must divide the {heads} heads of q"
        )
    for name, tensor in (("q", q), ("v", v)):
        if tensor.shape[-1] == 0:
            raise ValueError(f"{name} has head_dim 0; it must be at least 1")
    for name, tensor in (("q", q), ("k", k)):
        if known(tensor.shape[-3] >= MAX_TOKENS):
            raise ValueError(f"{name} has {tensor.shape[-3]} tokens; allowed: below {MAX_TOKENS}")


def check_window(window: Window | None, sink_tokens: int) -> tuple[int, int, int]:
    """Returns (left, right, sink_tokens), with -1 for an unlimited side.

    Numbers beyond any length become the largest that the kernels take.
    """
    sink_tokens = _in_range(check_int("sink_tokens", sink_tokens, 0))
    if window is None:
        return -1, -1, sink_tokens
    pair = entries(window)
    if pair is None:
        raise wrong_type("window", window, "None or a pair (left, right)")
    if len(pair) != 2:
        raise ValueError(f"window has {len(pair)} entries; it must be a pair (left, right)")
    left, right = (_check_side(name, n) for name, n in zip(("left", "right"), pair, strict=True))
    return left, right, sink_tokens


def window_of(left: int, right: int) -> Window:
    """The other way round: the pair with None for an unlimited side."""
    return (None if left < 0 else left, None if right < 0 else right)


def _check_side(name: str, side: int | None) -> int:
    if side is None:
        return -1
    if not is_int(side):
        raise wrong_type(f"window: {name}", side, "an int >= 0 or None")
    if side < 0:
        raise ValueError(f"window: {name} is {side}; it must be >= 0, or None for unlimited")
    return _in_range(side)


def _in_range(distance: int) -> int:
    return MAX_TOKENS if known(distance > MAX_TOKENS) else distance


def check_number(name: str, value: Any, minimum: float = -FLOAT32.max) -> float:
    """Returns ``value`` as a float if float32, in which the kernels compute, holds it."""
    allowed = "a number that float32 holds" + (f", >= {minimum:g}" if minimum == 0 else "")
    number = plain(value)
    if isinstance(number, bool) or not isinstance(
        number, (int, float, torch.SymInt, torch.SymFloat)
    ):
        raise wrong_type(name, value, allowed)
    number = float(number)
    in_range = minimum <= number <= FLOAT32.max  # false for NaN
    if not in_range or 0 < abs(number) < FLOAT32.tiny:
        raise ValueError(f"{name} is {value}; it must be {allowed}")
    return number


def check_positive(name: str, value: Any) -> float:
    """:func:`check_number` of more than 0."""
    number = check_number(name, value, minimum=0.0)
    if number == 0.0:
        raise ValueError(f"{name} is {value}; it must be > 0")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Returns ``value`` as a bool. Under torch.compile a comparison of sizes may be symbolic."""
    flag = plain(value)
    if not isinstance(flag, (bool, torch.SymBool)):
        raise wrong_type(name, value, "True or False")
    return bool(flag)


def check_bias(bias: Tensor, q: Tensor, k: Tensor) -> None:
    """A float tensor [B|1, H|1, Sq|1, Sk] of q's dtype or float32."""
    require_tensor("bias", bias)
    if bias.dtype == torch.bool:
        raise TypeError(
            "bias is a torch.bool tensor; pass a float one: "
            "torch.zeros(mask.shape).masked_fill(~mask, float('-inf')) hides where mask is False"
        )
    if bias.dtype not in (q.dtype, torch.float32):
        raise TypeError(f"bias has dtype {bias.dtype}; allowed: that of q, {q.dtype}, or float32")
    require_device("bias", bias, q)
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    fits = bias.dim() == 4 and bias.shape[3] == full[3]
    if not fits or any(n != 1 and n != m for n, m in zip(bias.shape[:3], full[:3], strict=True)):
        raise ValueError(
            f"bias has shape {list(bias.shape)}; it must be [batch or 1, heads or 1, queries or 1, "
            f"keys] with batch, heads, queries, keys = {list(full)}"
        )


def check_slopes(slopes: Tensor, q: Tensor, batch: int) -> None:
    """float32 [H] or [B, H], not to be differentiated."""
    require_tensor("alibi_slopes", slopes)
    if slopes.dtype != torch.float32:
        raise TypeError(f"alibi_slopes has dtype {slopes.dtype}; it must be torch.float32")
    require_device("alibi_slopes", slopes, q)
    heads = q.shape[-2]
    if tuple(slopes.shape) != ((heads,) if slopes.dim() == 1 else (batch, heads)):
        raise ValueError(
            f"alibi_slopes has shape {list(slopes.shape)}; allowed: [heads] = [{heads}] or "
            f"[batch, heads] = [{batch}, {heads}]"
        )
    if slopes.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "alibi_slopes requires a gradient, but it is not differentiated; pass "
            "alibi_slopes.detach(), or a bias to learn the slopes"
        )


def check_sinks(sinks: Tensor, q: Tensor) -> None:
    """A float tensor [H]."""
    require_tensor("sinks", sinks)
    if sinks.dtype not in FLOAT_DTYPES:
        raise TypeError(f"sinks has dtype {sinks.dtype}; it must be a floating dtype")
    require_device("sinks", sinks, q)
    if tuple(sinks.shape) != (q.shape[-2],):
        raise ValueError(
            f"sinks has shape {list(sinks.shape)}; it must be [heads] = [{q.shape[-2]}]"
        )


def require_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on q's device, {q.device}")


def check_cu_seqlens(
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, q: Tensor, k: Tensor
) -> int:
    """Returns the number of sequences N, if both are int32 [N + 1].

    On the CPU their values are checked too: from 0, never falling, not past the tokens.
    """
    for name, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu_seqlens is None:
            raise ValueError(f"{name} is None; both cu_seqlens must be given, or neither")
        require_tensor(name, cu_seqlens)
        if cu_seqlens.dtype != torch.int32:
            raise TypeError(f"{name} has dtype {cu_seqlens.dtype}; it must be torch.int32")
        require_device(name, cu_seqlens, q)
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
            raise ValueError(
                f"{name} has shape {list(cu_seqlens.shape)}; it must be [sequences + 1]"
            )
    assert cu_seqlens_q is not None and cu_seqlens_k is not None
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_k has {cu_seqlens_k.shape[0]} entries; it must have as many as "
            f"cu_seqlens_q, {cu_seqlens_q.shape[0]}"
        )
    batch = cu_seqlens_q.shape[0] - 1
    for name, given, tokens in (
        ("cu_seqlens_q", cu_seqlens_q, q),
        ("cu_seqlens_k", cu_seqlens_k, k),
    ):
        if has_values(given):
            _check_offsets(name, given.tolist(), tokens.shape[0])
    return batch


def _check_offsets(name: str, offsets: list[int], tokens: int) -> None:
    if offsets[0] != 0:
        raise ValueError(f"{name} starts at {offsets[0]}; it must start at 0")
    for n, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if end < begin:
            raise ValueError(
                f"{name} falls from {begin} to {end} at entry {n + 1}; it must never decrease"
            )
    if offsets[-1] > tokens:
        raise ValueError(f"{name} ends at {offsets[-1]}, past the end of the {tokens} tokens")


def check_parts(outs: list[Tensor], lses: list[Tensor]) -> None:
    """Parts of merge_attention: as many lses as outs, all of one shape, dtype and device."""
    if not outs or len(outs) != len(lses):
        raise ValueError(
            f"outs has {len(outs)} entries and lses {len(lses)}; they must be as many, at least one"
        )
    for name, parts in (("outs", outs), ("lses", lses)):
        for n, part in enumerate(parts):
            require_tensor(f"{name}[{n}]", part)
            first = parts[0]
            if part.dtype not in FLOAT_DTYPES or part.dtype != first.dtype:
                raise TypeError(
                    f"{name}[{n}] has dtype {part.dtype}; all must have one floating dtype"
                )
            if part.shape != first.shape or part.device != first.device:
                raise ValueError(
                    f"{name}[{n}] is {describe(part)}; all must be like {name}[0], "
                    f"{describe(first)}"
                )
    if lses[0].shape != outs[0].shape[:-1] or lses[0].device != outs[0].device:
        raise ValueError(
            f"lses[0] is {describe(lses[0])}; it must have the shape of outs without the last "
            f"dimension, {list(outs[0].shape[:-1])}, on {outs[0].device}"
        )
