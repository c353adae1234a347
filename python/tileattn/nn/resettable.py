"""Modules whose tensors can all be set anew."""

from __future__ import annotations

from torch import nn


class ResettableModule(nn.Module):
    """What all modules here have in common.

    Built on ``meta`` and given memory by ``to_empty()``, a module is filled by ``load_state_dict``
    or by :meth:`reset_parameters`; both fill all of it, as every buffer is in the state dict.
    """

    def reset_parameters(self) -> None:
        """Sets every parameter and buffer as the constructor does; random ones are drawn anew.

        Raises:
            NotImplementedError: a module among the arguments has tensors and no
                ``reset_parameters``.
        """
        for name, child in self.named_children():
            _reset(name, child)
        self._reset_own()

    def _reset_own(self) -> None:
        """The tensors that belong to no child."""


def _reset(name: str, module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
        return
    if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        raise NotImplementedError(
            f"{type(module).__name__} at {name!r} has tensors of its own, but no reset_parameters()"
        )
    for child_name, child in module.named_children():
        _reset(f"{name}.{child_name}", child)
