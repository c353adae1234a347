"""The raw operators of linear attention: schemas, fake kernels, gradients.

States are float32; ``z``, the state of the denominators, exists only with ``normalize``. Results
that a call does not have are empty tensors of shape [0]. ``feature_map`` is an index into
:data:`FEATURE_MAPS`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn._ops import _LIBRARY, _no_second_derivative, _no_vmap

#: Those that kernels apply themselves, by the values of the enum FeatureMap.
FEATURE_MAPS = (None, "taylor2")

_STATE = "Tensor? log_decay, Tensor? s, Tensor? z, Tensor? cu_seqlens, "
_OPTIONS = _STATE + "float scale, bool causal, bool normalize"
SCHEMAS = (
    f"linear_attention_forward(Tensor q, Tensor k, Tensor v, {_OPTIONS}, int feature_map=0) -> "
    "(Tensor out, Tensor denominator, Tensor last_s, Tensor last_z)",
    "linear_attention_backward(Tensor dout, Tensor? dlast_s, Tensor? dlast_z, Tensor q, Tensor k, "
    f"Tensor v, Tensor? out, Tensor? denominator, {_OPTIONS}, bool decay_grad, "
    "int feature_map=0) -> "
    "(Tensor dq, Tensor dk, Tensor dv, Tensor dlog_decay, Tensor ds, Tensor dz)",
    f"segment_state(Tensor k, Tensor v, {_STATE}int heads, bool normalize, int feature_map=0) -> "
    "(Tensor last_s, Tensor last_z)",
    "linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor(a!) s, Tensor(b!)? z, "
    "Tensor? log_decay, Tensor? slots, float scale) -> Tensor",
)
for _schema in SCHEMAS:
    _LIBRARY.define(_schema)

_BACKWARD = torch.ops.tileattn.linear_attention_backward


def feature_dim(feature_map: int, dim: int) -> int:
    """Channels of what meets the state."""
    return 1 + dim + dim * dim if FEATURE_MAPS[feature_map] == "taylor2" else dim


def _new_state(
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    heads: int,
    normalize: bool,
    feature_map: int = 0,  # torch leaves out arguments that have their default
) -> tuple[Tensor, Tensor]:
    sequences = k.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    z_shape = (sequences, heads, feature_dim(feature_map, k.shape[-1]))
    s = k.new_empty((*z_shape, v.shape[-1]), dtype=torch.float32)
    return s, k.new_empty(z_shape if normalize else (0,), dtype=torch.float32)


@torch.library.register_fake("tileattn::linear_attention_forward", lib=_LIBRARY)
def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    cu_seqlens, normalize = rest[3], rest[6]
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    denominator = q.new_empty(q.shape[:-1] if normalize else (0,), dtype=torch.float32)
    return out, denominator, *_new_state(k, v, cu_seqlens, q.shape[2], normalize, *rest[7:])


@torch.library.register_fake("tileattn::linear_attention_backward", lib=_LIBRARY)
def _fake_backward(
    dout: Tensor, ds: Tensor | None, dz: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    log_decay, cu_seqlens, normalize, decay_grad = rest[2], rest[5], rest[8], rest[9]
    gradients = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    shape = q.shape[:-1] if log_decay is not None and decay_grad else (0,)
    dlog_decay = q.new_empty(shape, dtype=torch.float32)
    state = _new_state(k, v, cu_seqlens, q.shape[2], normalize, *rest[10:])
    return *gradients, dlog_decay, *state


@torch.library.register_fake("tileattn::segment_state", lib=_LIBRARY)
def _fake_segment_state(k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _new_state(k, v, *rest[3:])


@torch.library.register_fake("tileattn::linear_attention_step", lib=_LIBRARY)
def _fake_step(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _with_z(
    ds: Tensor | None, dz: Tensor | None, shapes: tuple[torch.Size, torch.Size], normalize: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a final state: of both parts, or of none."""
    given = ds if ds is not None else dz
    if given is None:
        return None, None
    ds, dz = (
        given.new_zeros(shape) if gradient is None else gradient
        for gradient, shape in zip((ds, dz), shapes, strict=True)
    )
    return ds, (dz if normalize else None)


def _gradients(
    needed: tuple[bool, ...], results: tuple[Tensor, ...], log_decay: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Of q, k, v, log_decay, s, z, where needed."""
    dq, dk, dv, dlog_decay, ds, dz = results
    if log_decay is not None and log_decay.dim() == 1:
        dlog_decay = dlog_decay.sum((0, 1)) if needed[3] else dlog_decay
    every = (dq, dk, dv, dlog_decay, ds, dz)
    return tuple(g if need else None for g, need in zip(every, needed, strict=True))


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, s, z, cu_seqlens, *ctx.options, ctx.feature_map = inputs
    out, denominator, last_s, last_z = output
    kept = (out, denominator) if ctx.options[-1] else (None, None)
    ctx.save_for_backward(q, k, v, *kept, log_decay, s, z, cu_seqlens)
    ctx.mark_non_differentiable(denominator)
    ctx.state_shapes = last_s.shape, last_z.shape
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dout: Tensor | None, _: Tensor | None, ds: Tensor | None, dz: Tensor | None
) -> tuple[Any, ...]:
    q, k, v, out, denominator, log_decay, s, z, cu_seqlens = ctx.saved_tensors
    nothing = (None,) * (2 + len(ctx.options))  # of cu_seqlens, the options and feature_map
    if dout is None and ds is None and dz is None:
        return (None,) * 6 + nothing
    if dout is None:
        dout = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    ds, dz = _with_z(ds, dz, ctx.state_shapes, ctx.options[-1])
    inputs = (q, k, v, out, denominator, log_decay, s, z, cu_seqlens)
    options = (*ctx.options, ctx.needs_input_grad[3], ctx.feature_map)
    results = _BACKWARD(dout, ds, dz, *inputs, *options)
    return _gradients(ctx.needs_input_grad[:6], results, log_decay) + nothing


torch.library.register_autograd(
    "tileattn::linear_attention_forward", _backward, setup_context=_setup_forward, lib=_LIBRARY
)


def _setup_segment(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    k, v, log_decay, s, z, cu_seqlens, ctx.heads, ctx.normalize, ctx.feature_map = inputs
    ctx.save_for_backward(k, v, log_decay, s, z, cu_seqlens)
    ctx.state_shapes = output[0].shape, output[1].shape
    ctx.set_materialize_grads(False)


def _segment_backward(ctx: Any, ds: Tensor | None, dz: Tensor | None) -> tuple[Any, ...]:
    """That of a call whose out nobody uses."""
    k, v, log_decay, s, z, cu_seqlens = ctx.saved_tensors
    if ds is None and dz is None:
        return (None,) * 9
    ds, dz = _with_z(ds, dz, ctx.state_shapes, ctx.normalize)
    rows = (*k.shape[:2], ctx.heads)
    q, out = k.new_zeros((*rows, k.shape[-1])), k.new_zeros((*rows, v.shape[-1]))
    ones = k.new_ones(rows, dtype=torch.float32)
    kept = (out, ones) if ctx.normalize else (None, None)
    inputs = (q, k, v, *kept, log_decay, s, z, cu_seqlens)
    needed = ctx.needs_input_grad
    options = (1.0, True, ctx.normalize, needed[2], ctx.feature_map)
    results = _BACKWARD(out, ds, dz, *inputs, *options)
    gradients = _gradients((False, *needed[:5]), results, log_decay)
    return (*gradients[1:], None, None, None, None)


torch.library.register_autograd(
    "tileattn::segment_state", _segment_backward, setup_context=_setup_segment, lib=_LIBRARY
)
torch.library.register_autograd(
    "tileattn::linear_attention_backward", _no_second_derivative, lib=_LIBRARY
)
for _name in ("linear_attention_forward", "linear_attention_backward", "segment_state"):
    torch.library.register_vmap(f"tileattn::{_name}", _no_vmap, lib=_LIBRARY)
