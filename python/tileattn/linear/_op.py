"""The raw operators of linear attention: schemas, fake kernels, gradients.

States are float32; ``z``, the state of the denominators, exists only with ``normalize``. Results
that a call does not have are empty tensors of shape [0]. ``feature_map`` is an index into
:data:`FEATURE_MAPS`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from tileattn._common import transforms
from tileattn._common.library import LIBRARY

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
    LIBRARY.define(_schema)

FORWARD = torch.ops.tileattn.linear_attention_forward.default
SEGMENT = torch.ops.tileattn.segment_state.default
STEP = torch.ops.tileattn.linear_attention_step.default
_BACKWARD = torch.ops.tileattn.linear_attention_backward.default


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


@torch.library.register_fake("tileattn::linear_attention_forward", lib=LIBRARY)
def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _log_decay, _s, _z, cu_seqlens, _scale, _causal, normalize, *feature_map = rest
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    denominator = q.new_empty(q.shape[:-1] if normalize else (0,), dtype=torch.float32)
    return out, denominator, *_new_state(k, v, cu_seqlens, q.shape[2], normalize, *feature_map)


@torch.library.register_fake("tileattn::linear_attention_backward", lib=LIBRARY)
def _fake_backward(
    dout: Tensor, ds: Tensor | None, dz: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    _out, _denominator, log_decay, _s, _z, cu_seqlens, *options = rest
    _scale, _causal, normalize, decay_grad, *feature_map = options
    gradients = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    shape = q.shape[:-1] if log_decay is not None and decay_grad else (0,)
    dlog_decay = q.new_empty(shape, dtype=torch.float32)
    state = _new_state(k, v, cu_seqlens, q.shape[2], normalize, *feature_map)
    return *gradients, dlog_decay, *state


@torch.library.register_fake("tileattn::segment_state", lib=LIBRARY)
def _fake_segment_state(k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _log_decay, _s, _z, *others = rest
    return _new_state(k, v, *others)


@torch.library.register_fake("tileattn::linear_attention_step", lib=LIBRARY)
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


def _gradients(ctx: Any, results: tuple[Tensor, ...], log_decay: Any) -> dict[str, Tensor | None]:
    """By name, from what the backward returns."""
    dq, dk, dv, dlog_decay, ds, dz = results
    if "log_decay" in ctx.needs and log_decay.dim() == 1:
        dlog_decay = dlog_decay.sum((0, 1))
    return {"q": dq, "k": dk, "v": dv, "log_decay": dlog_decay, "s": ds, "z": dz}


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, s, z, cu_seqlens, *options, ctx.feature_map = inputs
    ctx.scale, ctx.causal, ctx.normalize = options
    out, denominator, last_s, last_z = output
    kept = (out, denominator) if ctx.normalize else (None, None)
    transforms.save(ctx, q, k, v, *kept, log_decay, s, z, cu_seqlens)
    ctx.mark_non_differentiable(denominator)
    ctx.state_shapes = last_s.shape, last_z.shape


def _backward(
    ctx: Any, dout: Tensor | None, _: Tensor | None, ds: Tensor | None, dz: Tensor | None
) -> dict[str, Tensor | None]:
    saved = ctx.saved_tensors
    q, _, v, _, _, log_decay, *_ = saved
    if dout is None:
        dout = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    ds, dz = _with_z(ds, dz, ctx.state_shapes, ctx.normalize)
    options = (ctx.scale, ctx.causal, ctx.normalize, "log_decay" in ctx.needs, ctx.feature_map)
    results = transforms.call(_BACKWARD, dout, ds, dz, *saved, *options)
    return _gradients(ctx, results, log_decay)


def _jvp(
    ctx: Any,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dlog_decay: Tensor | None,
    ds: Tensor | None,
    dz: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    """q^T S is linear in q, in k and in v and s together; q . z is the same with v = 1."""
    q, k, v, out, denominator, log_decay, s, z, cu_seqlens = transforms.primals(ctx)
    scale, causal, normalize = ctx.scale, ctx.causal, ctx.normalize
    _require_linear(dlog_decay, ctx.feature_map, dq, dk)
    # Where normalized a factor cancels: means stay in the range of half precision, sums do not.
    tokens = max(q.shape[1], 1) if normalize else 1

    def product(q: Tensor, k: Tensor, v: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        tensors = (q, k, v, log_decay, s, None, cu_seqlens)
        out, _, last_s, _ = FORWARD(*tensors, scale / tokens, causal, False, ctx.feature_map)
        return out, last_s

    def tangent(
        v: Tensor, s: Tensor | None, dv: Tensor | None, ds: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
        last = q.new_zeros((*ctx.state_shapes[0][:-1], v.shape[-1]), dtype=torch.float32)
        if dq is not None:
            out = out + product(dq, k, v, s)[0]
        for keys, values, state in ((dk, v, None), (k, _zeros(dv, v, ds), ds)):
            if keys is not None and values is not None:
                more = product(q, keys, values, state)
                out, last = out + more[0], last + more[1]
        return out, last

    dout, dlast_s = tangent(v, s, dv, ds)
    if not normalize:
        return dout, None, dlast_s, dlast_s.new_zeros(0)
    ones = v.new_ones((*v.shape[:-1], _COLUMNS))
    change, dlast_z = tangent(ones, _columns(z), None, _columns(dz))
    # Denominators have no derivative as results of the forward; their sums, computed once more,
    # give it to nested transforms.
    sums = product(q, k, ones, _columns(z))[0][..., :1].float()
    divisor = (denominator / tokens).unsqueeze(-1) + (sums - sums.detach())
    dout = (dout.float() - out.float() * change[..., :1].float()) / divisor
    dout = dout.masked_fill(divisor == 0, 0.0).to(out.dtype)
    return dout, None, dlast_s, dlast_z[..., 0]


#: Values of 1 that make a state of z: as many as every kernel takes.
_COLUMNS = 8


def _columns(z: Tensor | None) -> Tensor | None:
    return None if z is None else z.unsqueeze(-1).expand(*z.shape, _COLUMNS)


def _zeros(tangent: Tensor | None, like: Tensor, needed: Tensor | None) -> Tensor | None:
    """Zeros in the place of no tangent, if another one is given beside it."""
    return torch.zeros_like(like) if tangent is None and needed is not None else tangent


def _require_linear(dlog_decay: Tensor | None, feature_map: int, *features: Tensor | None) -> None:
    """What the formulas need: no tangent of the decay, none through a map in the kernel."""
    if dlog_decay is not None:
        transforms.refuse_tangent("in log_decay")
    if feature_map != 0 and any(tangent is not None for tangent in features):
        name = FEATURE_MAPS[feature_map]
        transforms.refuse_tangent(
            f"of {name} inside of the kernel (feature_map=tileattn.feature_maps.{name} has one)"
        )


transforms.register(LIBRARY, "linear_attention_forward", _setup_forward, _backward, _jvp)


def _setup_segment(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    k, v, log_decay, s, z, cu_seqlens, ctx.heads, ctx.normalize, ctx.feature_map = inputs
    transforms.save(ctx, k, v, log_decay, s, z, cu_seqlens)
    ctx.state_shapes = output[0].shape, output[1].shape


def _segment_backward(ctx: Any, ds: Tensor | None, dz: Tensor | None) -> dict[str, Tensor | None]:
    """That of a call whose out nobody uses."""
    k, v, log_decay, s, z, cu_seqlens = ctx.saved_tensors
    ds, dz = _with_z(ds, dz, ctx.state_shapes, ctx.normalize)
    rows = (*k.shape[:2], ctx.heads)
    q, out = k.new_zeros((*rows, k.shape[-1])), k.new_zeros((*rows, v.shape[-1]))
    ones = k.new_ones(rows, dtype=torch.float32)
    kept = (out, ones) if ctx.normalize else (None, None)
    inputs = (q, k, v, *kept, log_decay, s, z, cu_seqlens)
    options = (1.0, True, ctx.normalize, "log_decay" in ctx.needs, ctx.feature_map)
    results = transforms.call(_BACKWARD, out, ds, dz, *inputs, *options)
    return _gradients(ctx, results, log_decay)


def _segment_jvp(
    ctx: Any,
    dk: Tensor | None,
    dv: Tensor | None,
    dlog_decay: Tensor | None,
    ds: Tensor | None,
    dz: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    """The state is linear in k, and in v and s together; z is that of v = 1."""
    k, v, log_decay, _s, _z, cu_seqlens = transforms.primals(ctx)
    _require_linear(dlog_decay, ctx.feature_map, dk)

    def state(k: Tensor, v: Tensor, s: Tensor | None) -> Tensor:
        last_s: Tensor
        last_s, _ = SEGMENT(k, v, log_decay, s, None, cu_seqlens, ctx.heads, False, ctx.feature_map)
        return last_s

    last = k.new_zeros(ctx.state_shapes[0], dtype=torch.float32)
    for keys, values, initial in ((dk, v, None), (k, _zeros(dv, v, ds), ds)):
        if keys is not None and values is not None:
            last = last + state(keys, values, initial)
    if not ctx.normalize:
        return last, last.new_zeros(0)
    ones = v.new_ones((*v.shape[:-1], _COLUMNS))
    keys = torch.zeros_like(k) if dk is None else dk
    return last, state(keys, ones, _columns(dz))[..., 0]


transforms.register(LIBRARY, "segment_state", _setup_segment, _segment_backward, _segment_jvp)
transforms.register_last(LIBRARY, "linear_attention_backward")


def _no_derivative_of_a_step(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "tileattn.linear_attention_step has no gradient and no forward-mode derivative: it changes "
        "the states in place; use tileattn.linear_attention."
    )


transforms.register_in_place(LIBRARY, "linear_attention_step", (3, 4), _no_derivative_of_a_step)
