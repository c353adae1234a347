"""What surrounds a checkpointed forward, for torch.utils.checkpoint to find again in backward.

A checkpoint runs its function once more in backward, with autocast and random numbers as they were,
but outside of whatever block of ours the forward stood in. It has no place to say so: its frame is
found in the closure of the hook that packs saved tensors. In a torch that has none there, what
runs in backward is what surrounds the backward. Reentrant checkpoints have no such hook.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import _C

_AUTOGRAD: Any = _C._autograd
_HOOKS = "saved_tensors_default_hooks"
_NEEDED = (f"_top_{_HOOKS}", f"_pop_{_HOOKS}", f"_push_{_HOOKS}", "_saved_tensors_hooks_is_enabled")
_KNOWN = all(hasattr(_AUTOGRAD, name) for name in _NEEDED)

Context = Callable[[], AbstractContextManager[None]]


class _Recomputation:
    """A frame's recomputation, within the context of its forward."""

    def __init__(self, context: Context, recompute: Callable[..., None]) -> None:
        self.context, self.recompute = context, recompute

    def __call__(self, *inputs: Any) -> None:
        with self.context():
            self.recompute(*inputs)


def keep(context: Context) -> None:
    """Those checkpoints around this point that keep nothing yet recompute within ``context()``."""
    if not _KNOWN or _AUTOGRAD._top_saved_tensors_default_hooks(True) is None:
        return
    if not _AUTOGRAD._saved_tensors_hooks_is_enabled():  # under torch.func: none can be pushed
        return
    hooks: list[Any] = []
    # Only the top of the stack is to be seen.
    while (top := _AUTOGRAD._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        _AUTOGRAD._pop_saved_tensors_default_hooks()
    for pair in reversed(hooks):
        _AUTOGRAD._push_saved_tensors_default_hooks(*pair)
    for pack, _ in hooks:
        frame = _frame(pack)
        if frame is not None and not isinstance(frame.recompute_fn, _Recomputation):
            frame.recompute_fn = _Recomputation(context, frame.recompute_fn)


def _frame(pack: Any) -> Any | None:
    names = getattr(getattr(pack, "__code__", None), "co_freevars", ())
    if "frame" not in names:
        return None
    frame = pack.__closure__[names.index("frame")].cell_contents
    return frame if hasattr(frame, "recompute_fn") else None
