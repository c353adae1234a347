"""The operators under torch's transforms: gradients, tangents, ``torch.func``, ``torch.vmap``.

``torch.library.register_autograd`` gives an operator gradients alone: a tangent (forward-mode AD)
would be 0 without a word, ``torch.func.grad`` an error, and a training step costs it several times
what a small kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import compress
from typing import Any, NoReturn

import torch
from torch import _C, Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad
from torch.autograd.graph import increment_version

#: (context, arguments, output); keeps with :func:`save` what the other two need.
SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
#: (context, a gradient or None for each output) -> those of arguments, by name. ``ctx.needs`` has
#: the names of those that are asked for; others are left out, or dropped.
Backward = Callable[..., dict[str, Tensor | None]]
#: (context, a tangent or None for each argument) -> a tangent for each output.
Jvp = Callable[..., tuple[Any, ...]]


def call(op: Any, *arguments: Any, recorded: bool | None = None) -> Any:
    """The operator, without its autograd layer where that would only cost time.

    ``recorded`` is whether gradients are asked for, where the caller knows.
    """
    if torch.compiler.is_compiling() or _differentiated(arguments, recorded):
        return op(*arguments)
    with _C._AutoDispatchBelowAutograd():
        return op(*arguments)


def call_in_place(op: Any, changed: tuple[Tensor, ...], *arguments: Any) -> Any:
    """:func:`call` of an operator of :func:`register_in_place`."""
    if torch.compiler.is_compiling() or _differentiated(arguments):
        return op(*arguments)
    increment_version(changed)
    with _C._AutoDispatchBelowADInplaceOrView():
        return op(*arguments)


def _differentiated(arguments: tuple[Any, ...], recorded: bool | None = None) -> bool:
    if recorded is None:
        recorded = _C.is_grad_enabled() and _C._any_requires_grad(*arguments)
    return recorded or active()


def active() -> bool:
    """Whether forward-mode AD or a transform of torch.func is under way."""
    return forward_ad._current_level >= 0 or _C._are_functorch_transforms_active()


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """What backward finds in ``ctx.saved_tensors`` and jvp in :func:`primals`."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def primals(ctx: Any) -> tuple[Any, ...]:
    """In jvp: what was saved, without tangents."""
    return tuple(
        None if tensor is None else forward_ad.unpack_dual(tensor, level=0).primal
        for tensor in ctx.saved_tensors
    )


def refuse_tangent(what: str) -> NoReturn:
    raise NotImplementedError(
        f"tileattn's kernels have no forward-mode derivative (torch.func.jvp, jacfwd, "
        f"torch.autograd.forward_ad) {what}; use reverse mode (torch.autograd.grad, "
        "torch.func.vjp), or call with backend='reference'."
    )


def register(
    library: torch.library.Library,
    name: str,
    setup_context: SetupContext,
    backward: Backward,
    jvp: Jvp,
) -> None:
    """Gives ``torch.ops.tileattn.NAME`` its derivatives."""
    op = getattr(torch.ops.tileattn, name).default
    places = {argument.name: n for n, argument in enumerate(op._schema.arguments)}
    defaults = tuple(argument.default_value for argument in op._schema.arguments)

    # The dispatcher has already come to one level of torch.func's transforms where this runs, so
    # that an ordinary Function is what each level needs. The dispatcher's keyset is the last
    # argument: the others keep their places.
    class Derivatives(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            arguments, keyset = inputs[:-1], inputs[-1] & _C._after_autograd_keyset
            functional = _C._are_functorch_transforms_active()
            with _recording() if functional else _C._AutoDispatchBelowAutograd():
                output = op.redispatch(keyset, *arguments)
            ctx.set_materialize_grads(False)
            # The dispatcher leaves out arguments that have their default.
            setup_context(ctx, arguments + defaults[len(arguments) :], output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
            if all(gradient is None for gradient in gradients):
                return (None,) * len(ctx.needs_input_grad)
            # The last one is the keyset; arguments that have their default may be left out.
            ctx.needs = set(compress(places, ctx.needs_input_grad))
            found = backward(ctx, *gradients)
            in_order: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
            for name in ctx.needs:
                in_order[places[name]] = found.get(name)
            return tuple(in_order)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
            # Off in here, so that this level does not record; lower ones are to.
            with forward_ad._set_fwd_grad_enabled(True):
                return jvp(ctx, *tangents[:-1])

    Derivatives.__name__ = f"Derivatives_{name}"
    apply = super(Function, Derivatives).apply

    def autograd(keyset: Any, *arguments: Any) -> Any:
        if not _C._are_functorch_transforms_active():
            return apply(*arguments, keyset)
        with enable_single_level_autograd_function():
            return apply(*arguments, keyset)

    library.impl(name, autograd, "Autograd", with_keyset=True)
    rule = _no_vmap if op._schema.is_mutable else _one_by_one(op)
    torch.library.register_vmap(f"tileattn::{name}", rule, lib=library)


@contextmanager
def _recording() -> Iterator[None]:
    """Undoes what torch does around a Function's ``forward``, for the next level of torch.func."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def register_in_place(
    library: torch.library.Library,
    name: str,
    changed: tuple[int, ...],
    refuse: Callable[..., NoReturn],
) -> None:
    """:func:`register` for an operator that changes the tensors at the places ``changed``.

    What was saved for a backward before is then known to be no longer what it was.
    """
    register(library, name, lambda *_: None, refuse, refuse)
    op = getattr(torch.ops.tileattn, name).default

    def count(keyset: Any, *arguments: Any) -> Any:
        increment_version([t for n in changed if (t := arguments[n]) is not None])
        return op.redispatch(keyset & _C._after_ADInplaceOrView_keyset, *arguments)

    library.impl(name, count, "ADInplaceOrView", with_keyset=True)


def register_last(
    library: torch.library.Library, name: str, instead: str = "call with backend='reference'"
) -> None:
    """For an operator that computes derivatives and has none itself: says so, and what to do."""

    def refuse(*_: Any) -> NoReturn:
        raise NotImplementedError(
            "tileattn's kernels have no second derivative; for double backward "
            f"(create_graph=True) and nested transforms of torch.func, {instead}."
        )

    register(library, name, lambda *_: None, refuse, refuse)


def _one_by_one(op: Any) -> Callable[..., tuple[Any, Any]]:
    """The rule of torch.vmap: a call for each element of the mapped dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def call_on(n: int) -> Any:
            pairs = zip(arguments, in_dims, strict=True)
            return op(*(a.select(dim, n) if isinstance(dim, int) else a for a, dim in pairs))

        if info.batch_size == 0:
            raise NotImplementedError(f"torch.vmap of {op} over a dimension of size 0")
        results = [call_on(n) for n in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(map(torch.stack, zip(*results, strict=True)))
        return stacked, (0,) * len(stacked)

    return rule


def _no_vmap(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "tileattn.linear_attention_step changes states in place and has no torch.vmap rule; fold "
        "the mapped dimension into the batch."
    )
