"""Every family as a function of tensors, to be differentiated and mapped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import tileattn
from tileattn import attention, linear_attention, neighborhood_attention, segment_state

Shapes = tuple[tuple[int, ...], ...]
#: What is differentiated, (*tensors, backend=None) -> results, and the shapes of the tensors.
Problem = tuple[Callable[..., Any], Shapes]

QKV = ((2, 9, 4, 16), (2, 9, 2, 16), (2, 9, 2, 24))
SAME = ((2, 9, 2, 16),) * 3
GRID = ((2, 4, 5, 4, 16), (2, 4, 5, 2, 16), (2, 4, 5, 2, 24))
PACKED = ((9, 4, 16), (9, 2, 16), (9, 2, 24))
S, Z = (2, 4, 16, 24), (2, 4, 16)
SEQLENS = torch.tensor([0, 4, 4, 8], dtype=torch.int32)  # the last token belongs to no sequence


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def of(function: Callable[..., Any], shapes: Shapes, *names: str, **options: Any) -> Problem:
    """The last tensors are the keywords ``names``."""

    def problem(*tensors: Tensor, backend: str | None = None) -> Any:
        first = len(tensors) - len(names)
        given = dict(zip(names, tensors[first:], strict=True))
        return function(*tensors[:first], **given, **options, backend=backend)

    return problem, shapes


def with_state(function: Callable[..., Any], shapes: Shapes, **options: Any) -> Problem:
    """An initial state, which is a pair where normalized."""
    if function is linear_attention:
        options["return_final_state"] = True

    def problem(*tensors: Tensor, backend: str | None = None) -> Any:
        *rest, s = tensors[:-1] if options.get("normalize") else tensors
        state = (s, tensors[-1]) if options.get("normalize") else s
        return function(*rest, initial_state=state, **options, backend=backend)

    return problem, shapes


def of_v(function: Callable[..., Any], **options: Any) -> Problem:
    q, k = (positive(*shape) for shape in QKV[:2])

    def problem(v: Tensor, backend: str | None = None) -> Any:
        return function(q.to(v.dtype), k.to(v.dtype), v, **options, backend=backend)

    return problem, QKV[2:]


def of_sinks() -> Problem:
    tensors = tuple(positive(*shape) for shape in QKV)

    def problem(sinks: Tensor, backend: str | None = None) -> Any:
        q, k, v = (tensor.to(sinks.dtype) for tensor in tensors)
        return attention(q, k, v, sinks=sinks, causal=True, return_lse=True, backend=backend)

    return problem, (QKV[0][2:3],)


def plain(function: Callable[..., Any], shapes: Shapes, **options: Any) -> Problem:
    """A function without kernels and backends."""
    return (lambda *tensors, backend=None: function(*tensors, **options)), shapes


def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    spec: dict[str, Any] = {"window": (3, 2), "stride": (2, 1), "causal": (True, False)}
    return tileattn.neighborhood_av(tileattn.neighborhood_qk(q, k, **spec).softmax(-1), v, **spec)


def merged(a: Tensor, b: Tensor, lse_a: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    empty = torch.zeros_like(lse_b, dtype=torch.bool)
    empty[:, 0] = True
    return tileattn.merge_attention([a, b], [lse_a, lse_b.masked_fill(empty, -torch.inf)])


def of_module(module: torch.nn.Module, *shape: int) -> Problem:
    own = {torch.float32: module, torch.float64: copy.deepcopy(module).double()}

    def problem(x: Tensor, backend: str | None = None) -> Any:
        return own[x.dtype](x, backend=backend)

    return problem, (shape,)


ATTENTION = of(attention, QKV, causal=True, window=(4, 0), return_lse=True)
NEIGHBORHOOD = of(neighborhood_attention, GRID, window=(3, 4), return_lse=True)
LINEAR = with_state(linear_attention, (*QKV, S), log_decay=-positive(4))
SEGMENT = with_state(segment_state, (*QKV[1:], S), log_decay=-positive(2, 9, 4))
UNFUSED = plain(unfused, GRID)
#: One for each operator that has kernels of its own.
OPERATORS = {
    "attention": ATTENTION,
    "neighborhood": NEIGHBORHOOD,
    "linear": LINEAR,
    "segment_state": SEGMENT,
    "unfused": UNFUSED,
}
PROBLEMS = OPERATORS | {
    "alibi and sink tokens": of(
        attention, QKV, window=(2, 1), sink_tokens=1, alibi_slopes=positive(4), return_lse=True
    ),
    "sinks": of(attention, (*QKV, (4,)), "sinks", scale=0.5, return_lse=True),
    "sinks alone": of_sinks(),
    "empty rows": of(lambda q, k, v, **o: attention(q, k[:, :4], v[:, :4], causal=True, **o), QKV),
    "packed": of(attention, PACKED, cu_seqlens_q=SEQLENS, cu_seqlens_k=SEQLENS, causal=True),
    "constant bias": of(attention, QKV, bias=positive(2, 4, 9, 9)),
    "v alone": of_v(attention, softcap=2.0, return_lse=True),
    "causal strides": of(neighborhood_attention, QKV, window=4, causal=True, stride=2),
    "extra keys": of(
        neighborhood_attention,
        (*GRID, (2, 3, 2, 16), (2, 3, 2, 24)),
        "extra_keys",
        "extra_values",
        window=3,
        return_lse=True,
    ),
    "halo": of(tileattn.halo_attention, GRID, block=2, halo=1, border="zeros"),
    "windowed": of(tileattn.windowed_attention, GRID, window=3, shift=1),
    "merge": plain(merged, (QKV[2], QKV[2], (2, 9, 2), (2, 9, 2))),
    "linear, bidirectional": of(linear_attention, QKV, causal=False),
    "linear, packed": of(
        linear_attention, tuple((1, *shape) for shape in PACKED), cu_seqlens=SEQLENS
    ),
    "linear, normalized": with_state(
        linear_attention,
        (*QKV, S, Z),
        log_decay=-positive(2, 9, 4),
        normalize=True,
        feature_map="elu1",
    ),
    "linear, taylor2": of(
        linear_attention, QKV, normalize=True, feature_map=tileattn.feature_maps.taylor2
    ),
    "linear, v alone": of_v(linear_attention, feature_map="taylor2", return_final_state=True),
    "segment_state, normalized": with_state(
        segment_state, (*QKV[1:], S, Z), log_decay=-positive(4), normalize=True
    ),
    "prefix": of(tileattn.prefix_linear_attention, (*QKV, *QKV[1:]), feature_map="elu1"),
    "clamped": of(tileattn.clamped_linear_attention, QKV, minimum=1.0),
    "agent": of(tileattn.agent_attention, (*SAME, (2, 3, 2, 16))),
    "softmax_rnn": of(tileattn.softmax_rnn_attention, QKV, finalizer="count"),
    "wersa": of(tileattn.wersa_attention, (*SAME, (3,), (16, 24))),
    "local linear": plain(tileattn.local_linear_attention, QKV, ridge=1.0),
    "parallax": plain(tileattn.parallax_attention, (QKV[0], *QKV)),
    "nn.Attention": of_module(tileattn.nn.Attention(32, 2, learn_sinks=True), 2, 9, 32),
    "nn.Lightning": of_module(tileattn.nn.LightningAttention(32, 2), 2, 9, 32),
    "nn.Neighborhood": of_module(
        tileattn.nn.NeighborhoodAttention2d(32, 2, window=3, relative_bias=True), 2, 4, 5, 32
    ),
}


def inputs(problem: Problem, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Primals and tangents, rounded to ``dtype`` but for states and what is float32 anyway."""
    generator = torch.Generator().manual_seed(0)

    def made() -> tuple[Tensor, ...]:
        return tuple(torch.randn(*shape, generator=generator).to(dtype) for shape in problem[1])

    return made(), made()


def leaves(results: Any) -> list[Tensor]:
    return list(pytree.tree_leaves(results))
