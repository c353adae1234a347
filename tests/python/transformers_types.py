"""What each model type of transformers does with attn_implementation="tileattn".

python tests/python/transformers_types.py  # writes the table in docs/transformers.md, 10 minutes
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_models
import torch
from torch import Tensor

import tileattn.integrations.transformers  # noqa: F401  (registers "tileattn")

TABLE = Path(__file__).parents[2] / "docs" / "transformers.md"
#: What a type does, in the order of the table.
OUTCOMES = {
    "runs": 'Runs; logits, gradients and causality as with "eager"',
    "refused": "Refused when it is loaded, as it computes its attention itself",
    "bypass": "Loads, has no attention that is asked for; warns",
    "part": "Has no model of its own; tried as a part of others",
    "package": "Not tried: needs a package that is not installed (timm, natten, torchaudio, ...)",
    "inputs": "Not tried: needs inputs that the test cannot make",
    "size": "Not tried: no tiny configuration that works, by general rules",
}
# Some hundred million parameters even so, or a minute.
LARGE = ("janus", "textnet", "vibevoice", "vibevoice_asr", "yolos", "perceiver")


def outcome(model_type: str) -> str:
    """A key of OUTCOMES. AssertionError: the model runs, but not as with "eager"."""
    if model_type in LARGE:
        return "size"
    try:
        cls = tiny_models.model_class(model_type)
        if cls is None:
            return "part"
        config = tiny_models.tiny_config(model_type)
        ours = _build(cls, config, "tileattn")
        eager = _build(cls, config, "eager")
        inputs = _accepted(eager)
    except Exception as error:
        return _reason(error)
    _redraw(eager)
    ours.load_state_dict(eager.state_dict())
    for (_, expected), (_, buffer) in zip(eager.named_buffers(), ours.named_buffers(), strict=True):
        buffer.data = expected.data.clone()
    return _compare(eager, ours, inputs)


def _reason(error: Exception) -> str:
    """Why a model was not run, as a key of OUTCOMES."""
    if isinstance(error, ImportError):
        return "package"
    if isinstance(error, tiny_models.NoValuesError):
        return "inputs"
    refused = 'attn_implementation="tileattn" is not possible'
    return "refused" if refused in str(error) else "size"


def _build(cls: Any, config: Any, implementation: str) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    return cls._from_config(config, attn_implementation=implementation).eval()


def _redraw(model: Any) -> None:
    """Larger weights than at the usual start of training, so that attention tells keys apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nan_to_num_(parameter)  # some are left uninitialized
            if parameter.dim() >= 2 and parameter.numel() and parameter.is_floating_point():
                std = parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _accepted(model: Any) -> dict[str, Tensor]:
    """The first inputs that the model takes."""
    first: Exception | None = None
    for inputs in tiny_models.inputs_for(model):
        try:
            with torch.no_grad():
                _run(model, inputs)
        except Exception as error:
            first = first or error
        else:
            return inputs
    assert first is not None
    raise first


def _run(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All float tensors that it returns, but for its cache."""
    torch.manual_seed(0)  # some models draw noise
    return list(_tensors(model(**inputs)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if "cache" not in name and "past_key" not in name:
                yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _compare(eager: Any, ours: Any, inputs: dict[str, Tensor]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = _run(ours, inputs)
    expected = _run(eager, inputs)
    if any(out.isnan().any() for out in expected):
        return "size"
    _assert_close("outputs", actual, expected)
    # The rest would compare transformers with itself; dac, a quantizer, then differs now and again.
    if any("nothing in it called tileattn" in str(w.message) for w in caught):
        return "bypass"
    _compare_gradients(ours, eager, actual, expected)
    with torch.no_grad():
        if _has_padding(inputs):
            _compare_padded(ours, eager, inputs)
        if "input_ids" in inputs:
            _compare_causality(ours, eager, inputs, actual, expected)
    return "runs"


def _assert_close(what: str, actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for n, (a, b) in enumerate(zip(actual, expected, strict=True)):
        finite = b.detach()[b.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        message = f"{what}, tensor {n}: "
        torch.testing.assert_close(
            a, b, rtol=0, atol=1e-4 * (1 + scale), msg=lambda m, message=message: message + m
        )


def _compare_gradients(ours: Any, eager: Any, actual: list[Tensor], expected: list[Tensor]) -> None:
    for model, outputs in ((ours, actual), (eager, expected)):
        generator = torch.Generator().manual_seed(3)
        weighted = [
            (out * torch.randn(out.shape, generator=generator)).sum()
            for out in outputs
            if out.requires_grad
        ]
        if not weighted:
            return
        model.zero_grad()
        torch.stack(weighted).sum().backward()
    wanted = {name: p.grad for name, p in eager.named_parameters()}
    largest = max(float(g.abs().max()) for g in wanted.values() if g is not None and g.numel())
    for name, parameter in ours.named_parameters():
        a, b = parameter.grad, wanted[name]
        assert (a is None) == (b is None), name
        if a is not None and a.numel():
            allowed = 1e-3 * (float(b.abs().max()) + 1e-3 * largest)
            off = float((a - b).abs().max())
            assert off <= allowed, f"gradient of {name}: off by {off:.3g}, allowed {allowed:.3g}"


def _has_padding(inputs: dict[str, Tensor]) -> bool:
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    return ids is not None and mask is not None and ids.shape == mask.shape


def _compare_padded(ours: Any, eager: Any, inputs: dict[str, Tensor]) -> None:
    for side, hidden in (("left", slice(None, 9)), ("right", slice(-9, None))):
        mask = torch.ones_like(inputs["attention_mask"])
        mask[0, hidden] = 0
        padded = {**inputs, "attention_mask": mask}
        _assert_close(f"padding on the {side}", _run(ours, padded), _run(eager, padded))


def _compare_causality(
    ours: Any,
    eager: Any,
    inputs: dict[str, Tensor],
    actual: list[Tensor],
    expected: list[Tensor],
) -> None:
    """What the last token does not reach with "eager", it does not reach with ours."""
    ids = inputs["input_ids"].clone()
    ids[:, -1] = 3
    changed = {**inputs, "input_ids": ids}
    before_and_after = zip(actual, _run(ours, changed), expected, _run(eager, changed), strict=True)
    for a, a_later, b, b_later in before_and_after:
        untouched = b == b_later
        off = (a - a_later).abs()[untouched]
        assert not off.numel() or float(off.max()) <= 1e-5, "the last token is seen too early"


def documented() -> dict[str, str]:
    """Each type's outcome as the documentation has it."""
    result = {}
    for line in TABLE.read_text().splitlines():
        for key, text in OUTCOMES.items():
            if line.startswith(f"| {text} |"):
                result.update(dict.fromkeys(re.findall(r"`([^`]+)`", line), key))
    return result


def table(outcomes: dict[str, str]) -> str:
    lines = ["| what it does | types | which |", "|---|---|---|"]
    for key, text in OUTCOMES.items():
        types = [name for name, found in outcomes.items() if found == key]
        lines.append(f"| {text} | {len(types)} | {', '.join(f'`{name}`' for name in types)} |")
    return "\n".join(lines)


def main() -> None:
    outcomes = {}
    types = tiny_models.model_types()
    for n, model_type in enumerate(types):
        try:
            outcomes[model_type] = outcome(model_type)
        except Exception as error:  # one type more or less
            print(f"{model_type}: {type(error).__name__}: {error}")
        print(f"{n + 1} of {len(types)}: {model_type}: {outcomes.get(model_type)}", flush=True)
    text = TABLE.read_text()
    start = text.index("| what it does |")
    end = text.find("\n\n", start)
    TABLE.write_text(text[:start] + table(outcomes) + (text[end:] if end >= 0 else "\n"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # uninitialized memory is NaN
    warnings.simplefilter("ignore")
    tiny_models.transformers.logging.set_verbosity_error()
    main()
