"""Checks of the arguments of dense attention, before any kernel starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn import capabilities
from tileattn._common import checks, softmax
from tileattn.backend import backend_for
from tileattn.dense._op import Settings, Tensors
from tileattn.reference.masked import has_values

Window = tuple[int | None, int | None]


@checks.remembered
def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: bool,
    window: Any,
    sink_tokens: Any,
    scale: Any,
    softcap: Any,
    causal: Any,
    deterministic: Any,
    return_lse: Any,
    backend: str,
) -> tuple[str, Settings, bool]:
    """The backend that runs the call, its plain arguments as the kernels take them, return_lse."""
    left, right, sink_tokens = check_window(window, sink_tokens)
    softcap = checks.check_number("softcap", softcap, minimum=0.0)
    has_dim = isinstance(q, Tensor) and q.dim() > 0 and q.shape[-1] > 0
    scale = checks.check_scale(scale, q.shape[-1] if has_dim else 1)
    causal = checks.check_flag("causal", causal)
    deterministic = checks.check_flag("deterministic", deterministic)
    return_lse = checks.check_flag("return_lse", return_lse)
    checks.check_qkv(q, k, v, packed)
    chosen = backend_for(backend, q.device)
    if chosen != "reference":
        softmax.require_kernel(chosen, q, v)
    settings = Settings(scale, softcap, left, right, sink_tokens, causal, deterministic)
    return chosen, settings, return_lse


def check_others(tensors: Tensors, packed: bool) -> None:
    """The tensors beside q, k and v, which have passed their own checks."""
    q, k, _, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k = tensors
    batch = check_cu_seqlens(cu_seqlens_q, cu_seqlens_k, q, k) if packed else q.shape[0]
    if bias is not None:
        if packed:
            what = "a bias with cu_seqlens or nested tensors"
            capabilities.require("reference", "bias with cu_seqlens", what)
        check_bias(bias, q, k)
    if alibi_slopes is not None:
        check_slopes(alibi_slopes, q, batch)
    if sinks is not None:
        check_sinks(sinks, q)


def check_window(window: Window | None, sink_tokens: int) -> tuple[int, int, int]:
    """Returns (left, right, sink_tokens), with -1 for an unlimited side.

    Numbers beyond any length become the largest that the kernels take.
    """
    sink_tokens = _in_range(checks.check_int("sink_tokens", sink_tokens, 0))
    if window is None:
        return -1, -1, sink_tokens
    pair = checks.entries(window)
    if pair is None:
        raise checks.wrong_type("window", window, "None or a pair (left, right)")
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
    if not checks.is_int(side):
        raise checks.wrong_type(f"window: {name}", side, "an int >= 0 or None")
    if side < 0:
        raise ValueError(f"window: {name} is {side}; it must be >= 0, or None for unlimited")
    return _in_range(side)


def _in_range(distance: int) -> int:
    return checks.MAX_TOKENS if checks.known(distance > checks.MAX_TOKENS) else distance


def check_bias(bias: Tensor, q: Tensor, k: Tensor) -> None:
    """A float tensor [B|1, H|1, Sq|1, Sk] of q's dtype or float32."""
    checks.require_tensor("bias", bias)
    if bias.dtype == torch.bool:
        raise TypeError(
            "bias is a torch.bool tensor; pass a float one: "
            "torch.zeros(mask.shape).masked_fill(~mask, float('-inf')) hides where mask is False"
        )
    if bias.dtype not in (q.dtype, torch.float32):
        raise TypeError(f"bias has dtype {bias.dtype}; allowed: that of q, {q.dtype}, or float32")
    checks.require_device("bias", bias, q)
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    fits = bias.dim() == 4 and bias.shape[3] == full[3]
    if not fits or any(n != 1 and n != m for n, m in zip(bias.shape[:3], full[:3], strict=True)):
        raise ValueError(
            f"bias has shape {list(bias.shape)}; it must be [batch or 1, heads or 1, queries or 1, "
            f"keys] with batch, heads, queries, keys = {list(full)}"
        )


def check_slopes(slopes: Tensor, q: Tensor, batch: int) -> None:
    """float32 [H] or [B, H], not to be differentiated."""
    checks.require_tensor("alibi_slopes", slopes)
    if slopes.dtype != torch.float32:
        raise TypeError(f"alibi_slopes has dtype {slopes.dtype}; it must be torch.float32")
    checks.require_device("alibi_slopes", slopes, q)
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
    checks.require_tensor("sinks", sinks)
    if sinks.dtype not in checks.FLOAT_DTYPES:
        raise TypeError(f"sinks has dtype {sinks.dtype}; it must be a floating dtype")
    checks.require_device("sinks", sinks, q)
    if tuple(sinks.shape) != (q.shape[-2],):
        raise ValueError(
            f"sinks has shape {list(sinks.shape)}; it must be [heads] = [{q.shape[-2]}]"
        )


def check_cu_seqlens(
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, q: Tensor, k: Tensor
) -> int:
    """Returns the number of sequences N, if both are int32 [N + 1].

    On the CPU their values are checked too: from 0, never falling, not past the tokens.
    """
    for name, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu_seqlens is None:
            raise ValueError(f"{name} is None; both cu_seqlens must be given, or neither")
        checks.require_tensor(name, cu_seqlens)
        if cu_seqlens.dtype != torch.int32:
            raise TypeError(f"{name} has dtype {cu_seqlens.dtype}; it must be torch.int32")
        checks.require_device(name, cu_seqlens, q)
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
            checks.check_offsets(name, given.tolist(), tokens.shape[0])
    return batch


def check_parts(outs: list[Tensor], lses: list[Tensor]) -> None:
    """Parts of merge_attention: as many lses as outs, all of one shape, dtype and device."""
    if not outs or len(outs) != len(lses):
        raise ValueError(
            f"outs has {len(outs)} entries and lses {len(lses)}; they must be as many, at least one"
        )
    for name, parts in (("outs", outs), ("lses", lses)):
        for n, part in enumerate(parts):
            checks.require_tensor(f"{name}[{n}]", part)
            first = parts[0]
            if part.dtype not in checks.FLOAT_DTYPES or part.dtype != first.dtype:
                raise TypeError(
                    f"{name}[{n}] has dtype {part.dtype}; all must have one floating dtype"
                )
            if part.shape != first.shape or part.device != first.device:
                raise ValueError(
                    f"{name}[{n}] is {checks.describe(part)}; all must be like {name}[0], "
                    f"{checks.describe(first)}"
                )
    if lses[0].shape != outs[0].shape[:-1] or lses[0].device != outs[0].device:
        raise ValueError(
            f"lses[0] is {checks.describe(lses[0])}; it must have the shape of outs without the "
            f"last dimension, {list(outs[0].shape[:-1])}, on {outs[0].device}"
        )
