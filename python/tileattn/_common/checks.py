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

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Positions are 32-bit in the kernels, with room for arithmetic on them.
MAX_TOKENS = 1 << 29
FLOAT32 = torch.finfo(torch.float32)
_LONGEST = 60  # characters of a value in a message
_MOST_KEPT = 4096  # results of a check


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


def check_scale(scale: Any, dim: int) -> float:
    """Returns ``scale`` as :func:`check_number`; that of heads of ``dim`` where it is None."""
    return dim**-0.5 if scale is None else check_number("scale", scale)


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


def require_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on q's device, {q.device}")


def check_offsets(name: str, offsets: list[int], tokens: int) -> None:
    if offsets[0] != 0:
        raise ValueError(f"{name} starts at {offsets[0]}; it must start at 0")
    for n, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if end < begin:
            raise ValueError(
                f"{name} falls from {begin} to {end} at entry {n + 1}; it must never decrease"
            )
    if offsets[-1] > tokens:
        raise ValueError(f"{name} ends at {offsets[-1]}, past the end of the {tokens} tokens")
