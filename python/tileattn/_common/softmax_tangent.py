"""The tangent of softmax attention, from its forward and backward kernels.

With weights p and scores s = scale q . k, out' = sum of p_j (s'_j - m) v_j + sum of p_j v'_j with
m = sum of p_j s'_j, which is lse'. The backward of another attention computes the first sum: for
a gradient g of its result o it gives dq = scale * sum of p_j (g . w_j - g . o) k_j, w its values.
Queries [q, 0] and keys [k, v] have the same scores; with g = q' and w = k, or g = q and w = k', the
last channels of that dq are the sum for one half of s' = scale (q' . k + q . k').
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tileattn._common.transforms import refuse_tangent

#: Keys or values that a query sees by its place, and extra ones.
Pair = tuple[Tensor, Tensor | None]
#: Of them; None is a tangent of 0.
Tangents = tuple[Tensor | None, Tensor | None]
#: (q, keys, values) -> out, lse and what else the backward takes of them.
Forward = Callable[[Tensor, Pair, Pair], Any]
#: (dout, q, keys, values, *results of the forward) -> dq.
Backward = Callable[..., Any]


def tangent(
    forward: Forward,
    backward: Backward,
    primals: tuple[Tensor, Pair, Pair],
    tangents: tuple[Tensor | None, Tangents, Tangents],
    scale: float,
    limit: float,
) -> tuple[Tensor, Tensor]:
    """out' and lse' of q, keys and values; ``limit`` is the kernels' of head dims.

    Raises:
        NotImplementedError: q and v have more than ``limit`` channels together.
    """
    q, keys, values = primals
    dq, dkeys, dvalues = tangents
    dim, dim_v, rows = q.shape[-1], values[0].shape[-1], q.shape[:-1]
    out, lse = q.new_zeros((*rows, dim_v)), q.new_zeros(rows, dtype=torch.float32)
    for probe, seen in ((dq, keys), (q, _filled(dkeys, keys))):
        if probe is None or seen is None:
            continue
        if dim + dim_v > limit:
            refuse_tangent(f"in q and k where q and v have more than {limit} channels together")
        results = forward(q, keys, seen)
        wide_q = torch.nn.functional.pad(q, (0, dim_v))
        out = out + backward(probe, wide_q, _joined(keys, values), seen, *results)[..., dim:]
        lse = lse + scale * (probe.float() * results[0].float()).sum(-1)
    seen = _filled(dvalues, values)
    if seen is not None:
        out = out + forward(q, keys, seen)[0]
    return out, lse


def _filled(tangents: Tangents, like: Pair) -> Pair | None:
    """With zeros where only the other one has a tangent; None where there is none at all."""
    first, extra = tangents
    if first is None and extra is None:
        return None
    if extra is None and like[1] is not None:
        extra = torch.zeros_like(like[1])
    return torch.zeros_like(like[0]) if first is None else first, extra


def _joined(left: Pair, right: Pair) -> Pair:
    """Side by side in channels."""
    extra = None if left[1] is None or right[1] is None else torch.cat([left[1], right[1]], -1)
    return torch.cat([left[0], right[0]], -1), extra
