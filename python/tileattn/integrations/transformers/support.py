"""Which models may ask for tileattn, and what is watched while they run.

transformers checks an implementation when a model is built or switched, but has no place where one
that is registered from outside brings a check of its own. Ours stands behind that check,
``PreTrainedModel.get_correct_attn_implementation``.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel

NAME = "tileattn"


def install() -> None:
    """Puts the check of models behind that of transformers, once."""
    original = PreTrainedModel.get_correct_attn_implementation
    if hasattr(original, "with_tileattn"):
        return

    @functools.wraps(original)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = original(self, *args, **kwargs)
        if chosen == NAME:
            _require_support(type(self))
            _watch(self)
        return chosen

    checked.with_tileattn = True  # type: ignore[attr-defined]
    PreTrainedModel.get_correct_attn_implementation = checked


def _require_support(cls: Any) -> None:
    """Raises ValueError if attention of the class, a PreTrainedModel, cannot be replaced."""
    module = vars(sys.modules[cls.__module__])
    # A part without any attention (a convolutional backbone) has nothing that could go wrong.
    attends = "ALL_ATTENTION_FUNCTIONS" in module or not cls._can_set_attn_implementation()
    if attends and not (cls._supports_sdpa or cls._supports_attention_backend):
        _refuse(f'{cls.__name__} computes its attention itself (it does not take "sdpa" either)')
    # Attention may also be picked from a table by name; the refusal is what it finds there.
    for name, table in module.items():
        if isinstance(table, dict) and "eager" in table and NAME not in table:
            table[NAME] = functools.partial(_refuse_choice, name, ", ".join(table))


def _refuse_choice(table: str, choices: str, *args: Any, **kwargs: Any) -> NoReturn:
    _refuse(f"{table}, from which this model takes its attention, has only {choices}")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(
        f'attn_implementation="{NAME}" is not possible: {reason}. Use "eager", or leave out the '
        f'part that this is, by the name of its configuration: attn_implementation={{"": "{NAME}", '
        '"vision_config": "eager"}.'
    )


class _Running(threading.local):
    """The forward passes of this thread."""

    def __init__(self) -> None:
        self.calls = 0  # of attention_forward
        self.outer: list[int] = []  # calls before each of the models around us


_running = _Running()
_warned: set[type] = set()


def count_call() -> None:
    """Says that attention_forward was called."""
    if not torch.compiler.is_compiling():
        _running.calls += 1


def refuse_attention_weights() -> NoReturn:
    raise NotImplementedError(
        "tileattn never forms the attention weights; output_attentions=True needs "
        'attn_implementation="eager".'
    )


def _watch(model: Any) -> None:
    if _before not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_before, with_kwargs=True)
        model.register_forward_hook(_after, always_call=True)


def _before(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if not torch.compiler.is_compiling():
        _running.outer.append(_running.calls)
    if kwargs.get("output_attentions") and model.config._attn_implementation == NAME:
        refuse_attention_weights()


def _after(model: Any, args: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    before = _running.outer.pop()
    bypassed = model.config._attn_implementation == NAME and _running.calls == before
    if output is None or _running.outer or not bypassed or type(model) in _warned:
        return  # it failed, is a part of another model, or there is nothing new to say
    _warned.add(type(model))
    warnings.warn(
        f'{type(model).__name__} has attn_implementation="{NAME}", but nothing in it called '
        "tileattn: it has no attention, or computes it itself.",
        stacklevel=2,
    )
