"""Products of which only the visible pairs exist, whatever the others hold.

A hidden pair has no score and its weight is 0, but 0 times what is not finite is not 0: a plain
matrix product would carry it to queries that do not see it, and to gradients alike. The two
products here are each other's derivatives. torch.compile traces the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def scores(a: Tensor, b: Tensor, seen: Tensor | None) -> Tensor:
    """a_i . b_j where row i sees column j, else 0.

    Args:
        a: [..., m, d]; b: [..., n, d].
        seen: bool [..., m, n], or what broadcasts to it; None: everything.
    """
    if seen is None:
        return a @ b.mT
    if torch.compiler.is_compiling():
        return (a @ b.mT).masked_fill(~seen, 0.0)
    found: Tensor = _Scores.apply(a, b, seen)
    return found


def mix(weights: Tensor, b: Tensor, seen: Tensor | None) -> Tensor:
    """The sum over the j that row i sees of weights_ij b_j.

    Args:
        weights: [..., m, n], 0 where not seen; b: [..., n, d].
        seen: as in :func:`scores`.
    """
    if seen is None or torch.compiler.is_compiling():
        return weights @ b
    mixed: Tensor = _Mix.apply(weights, b, seen)
    return mixed


def has_values(tensor: Tensor) -> bool:
    """Whether the values cost nothing to look at: on the CPU, not fake, not while tracing."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _mix_values(weights: Tensor, b: Tensor, seen: Tensor) -> Tensor:
    if has_values(b) and bool(b.isfinite().all()):
        return weights @ b
    dtype, zero = torch.promote_types(b.dtype, torch.float32), torch.zeros_like(b)
    mixed = weights @ torch.where(b.isfinite(), b, zero)
    # What the other values add: infinities of one sign, or what is not a number.
    signs, sign_of_b = weights.sign().to(dtype), torch.where(b.isinf(), b.sign(), zero).to(dtype)
    balance, infinite = signs @ sign_of_b, signs.abs() @ sign_of_b.abs()
    undefined = seen.to(dtype) @ b.isnan().to(dtype)
    undefined = undefined + (seen & (weights == 0)).to(dtype) @ sign_of_b.abs()
    undefined = (undefined > 0) | ((infinite > 0) & (balance.abs() != infinite))
    added = torch.where(infinite > 0, balance.sign() * torch.inf, torch.zeros_like(balance))
    return (mixed + added.to(mixed.dtype)).masked_fill(undefined, torch.nan)


def _sum_of_tangents(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], ctx: Any, da: Tensor, db: Tensor
) -> Tensor:
    # Without tangents of this level, and so that lower ones of torch.func record what is done.
    a, b, seen = (forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors)
    with forward_ad._set_fwd_grad_enabled(True):
        return product(da, b, seen) + product(a, db, seen)


def _with_batch(
    info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]
) -> Iterator[Tensor]:
    """The mapped dimension of torch.vmap in front, of each tensor with as many dimensions."""
    pairs = list(zip(tensors, in_dims, strict=True))
    dims = max(tensor.dim() + (dim is None) for tensor, dim in pairs)
    for tensor, dim in pairs:
        batch = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        ones = (1,) * (dims - batch.dim())
        batch = batch.reshape(batch.shape[0], *ones, *batch.shape[1:])
        yield batch.expand(info.batch_size, *batch.shape[1:])


class _Product(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class _Scores(_Product):
    @staticmethod
    def forward(a: Tensor, b: Tensor, seen: Tensor) -> Tensor:
        return (a @ b.mT).masked_fill(~seen, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, seen = ctx.saved_tensors
        gradient = gradient.masked_fill(~seen, 0.0)
        return mix(gradient, b, seen), mix(gradient.mT, a, seen.mT), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, db: Tensor, _: None) -> Tensor:
        return _sum_of_tangents(scores, ctx, da, db)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return scores(*_with_batch(info, in_dims, tensors)), 0


class _Mix(_Product):
    @staticmethod
    def forward(weights: Tensor, b: Tensor, seen: Tensor) -> Tensor:
        return _mix_values(weights, b, seen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, b, seen = ctx.saved_tensors
        return scores(gradient, b, seen), mix(weights.mT, gradient, seen.mT), None

    @staticmethod
    def jvp(ctx: Any, dweights: Tensor, db: Tensor, _: None) -> Tensor:
        return _sum_of_tangents(mix, ctx, dweights, db)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return mix(*_with_batch(info, in_dims, tensors)), 0
