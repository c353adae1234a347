"""The fit of local linear attention, which is differentiated as the equation that it solves.

Plain PyTorch on any device, but operators all the same: opaque to torch.compile, and with
derivatives that no loop of conjugate gradients has to be followed for. All tensors are
[B, H, tokens, ...]; p are the softmax weights [B, H, queries, keys] and z_j = k_j - q.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tileattn._common import transforms
from tileattn._common.library import LIBRARY

_EQUATION = "Tensor p, Tensor q, Tensor k, float ridge, SymInt iterations"
SCHEMAS = (
    f"local_linear_start({_EQUATION}) -> Tensor",
    f"local_linear_solution(Tensor residual, Tensor rho, {_EQUATION}) -> Tensor",
    f"local_linear_solve(Tensor right, {_EQUATION}) -> Tensor",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

_START = torch.ops.tileattn.local_linear_start.default
_SOLUTION = torch.ops.tileattn.local_linear_solution.default
_SOLVE = torch.ops.tileattn.local_linear_solve.default


def fitted(p: Tensor, q: Tensor, k: Tensor, ridge: float, iterations: int) -> Tensor:
    """rho [B, H, queries, D] with (sum of p z z^T + ridge I) rho = sum of p z."""
    rho = _START(p, q, k, ridge, iterations)
    found: Tensor = _SOLUTION(_residual(p, q, k, rho, ridge), rho, p, q, k, ridge, iterations)
    return found


def corrected(p: Tensor, q: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    """c_j = p_j (1 - rho . (k_j - q)), [..., queries, keys]."""
    return p * (1 + (rho * q).sum(-1, keepdim=True) - rho @ k.mT)


def _residual(p: Tensor, q: Tensor, k: Tensor, rho: Tensor, ridge: float) -> Tensor:
    """sum of p z - (sum of p z z^T + ridge I) rho = sum of c_j z_j - ridge rho."""
    c = corrected(p, q, k, rho)
    return c @ k - c.sum(-1, keepdim=True) * q - ridge * rho


def _product(p: Tensor, q: Tensor, k: Tensor, x: Tensor, ridge: float) -> Tensor:
    """(sum of p z z^T + ridge I) x: one product with the keys for z . x, one to add up."""
    weights = p * (x @ k.mT - (x * q).sum(-1, keepdim=True))
    return weights @ k - weights.sum(-1, keepdim=True) * q + ridge * x


def _solve(right: Tensor, p: Tensor, q: Tensor, k: Tensor, ridge: float, iterations: int) -> Tensor:
    """Conjugate gradients from 0, for every query at once; rows that are solved stand still."""

    def divided(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b > 0, a / b, torch.zeros_like(a))

    x, residual, direction = torch.zeros_like(right), right, right
    size = residual.square().sum(-1, keepdim=True)
    for _ in range(iterations):
        image = _product(p, q, k, direction, ridge)
        step = divided(size, (direction * image).sum(-1, keepdim=True))
        x = x + step * direction
        residual = residual - step * image
        last, size = size, residual.square().sum(-1, keepdim=True)
        direction = residual + divided(size, last) * direction
    return x


def _start(p: Tensor, q: Tensor, k: Tensor, ridge: float, iterations: int) -> Tensor:
    right = _residual(p, q, k, torch.zeros_like(q), ridge)
    return _solve(right, p, q, k, ridge, iterations)


def _like_q(*arguments: Any) -> Tensor:
    return torch.empty_like(arguments[-4])


def _setup_start(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """A constant: :func:`_solution` has its derivative."""
    ctx.mark_non_differentiable(output)


def _setup_solution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, *equation, ctx.ridge, ctx.iterations = inputs
    transforms.save(ctx, *equation)


def _solution_backward(ctx: Any, gradient: Tensor) -> dict[str, Tensor | None]:
    """The matrix is symmetric."""
    solved = transforms.call(_SOLVE, gradient, *ctx.saved_tensors, ctx.ridge, ctx.iterations)
    return {"residual": solved}


def _solution_jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
    """d rho = matrix^-1 d residual."""
    return _SOLVE(tangent, *transforms.primals(ctx), ctx.ridge, ctx.iterations)


for _op, _kernel in (
    (_START, _start),
    (_SOLUTION, lambda residual, rho, *_: rho.clone()),
    (_SOLVE, _solve),
):
    _name = _op._schema.name.removeprefix("tileattn::")
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(_op, _like_q, lib=LIBRARY)
transforms.register(LIBRARY, "local_linear_start", _setup_start, lambda *_: {}, lambda *_: (None,))
transforms.register(
    LIBRARY, "local_linear_solution", _setup_solution, _solution_backward, _solution_jvp
)
transforms.register_last(
    LIBRARY, "local_linear_solve", "call tileattn.reference.local_linear_attention"
)
