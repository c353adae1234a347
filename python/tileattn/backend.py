"""Which implementation runs: a keyword per call, or :func:`use_backend` around a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial

import torch

from tileattn._common import checkpoints

BACKENDS = ("auto", "cuda", "cpu", "reference")

_current: ContextVar[str] = ContextVar("tileattn_backend", default="auto")
# torch.compile cannot trace a ContextVar, but it guards a plain global: compiled code follows the
# block entered last in the process, eager code the block of its own thread or task.
_seen_by_compiler = "auto"


def check_backend(name: str) -> str:
    """Returns ``name``, or raises ValueError if it is not a backend."""
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}; allowed: {', '.join(map(repr, BACKENDS))}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Calls inside the block that do not name a backend themselves use this one.

    Eager calls see only the blocks of their own thread or asyncio task. A function under
    ``torch.compile`` sees the block entered last in the process and recompiles when that changes.
    What ``torch.utils.checkpoint`` (``use_reentrant=False``) computes again in backward has the
    backend of the forward, wherever the backward stands.

    Args:
        name: "auto", "cuda", "cpu" or "reference".

    Raises:
        ValueError: if ``name`` is none of these.
    """
    global _seen_by_compiler
    _surrounding()
    before, _seen_by_compiler = _seen_by_compiler, check_backend(name)
    token = None if torch.compiler.is_compiling() else _current.set(name)
    try:
        yield
    finally:
        _seen_by_compiler = before
        if token is not None:
            _current.reset(token)


def requested_backend(name: str | None) -> str:
    """The backend that a call asks for: its own keyword, else that of the block around it."""
    if name is not None:
        return check_backend(name)
    return _surrounding()


def _surrounding() -> str:
    """The backend of the block around this point, which checkpoints between them recompute with."""
    if torch.compiler.is_compiling():
        return _seen_by_compiler
    name = _current.get()
    checkpoints.keep(partial(use_backend, name))
    return name


def resolve_backend(name: str | None, device: torch.device) -> str:
    """The backend of a call on tensors of ``device``: "cuda", "cpu" or "reference".

    Raises:
        ValueError: if the backend asked for does not take tensors of that device.
        NotImplementedError: if no backend has kernels for that device.
    """
    return backend_for(requested_backend(name), device)


def backend_for(asked: str, device: torch.device) -> str:
    """:func:`resolve_backend` of what :func:`requested_backend` returned."""
    if asked == "reference":
        return asked
    # Meta tensors have no data: only shapes are computed, which is the same everywhere.
    kind = device.type
    if kind == "meta":
        return "cpu" if asked == "auto" else asked
    if asked == "auto":
        if kind not in ("cpu", "cuda"):
            raise NotImplementedError(
                f"tileattn has no kernels for device {kind!r} (only 'cpu' and 'cuda'); "
                "backend='reference' runs on any device, slowly."
            )
        return kind
    if kind != asked:
        raise ValueError(
            f"backend is {asked!r} but q is on device {str(device)!r}; move the tensors to "
            f"{asked!r} or use backend='auto'"
        )
    return asked
