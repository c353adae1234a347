"""Which models take attn_implementation="tileattn": the others say so, and none goes around it."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")

from tileattn.integrations.transformers import attention_forward, support  # noqa: E402

SMALL: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
IDS = torch.arange(2, 14).view(2, 6)

# Models that compute their attention themselves, in one way or another.
ALONE: dict[str, Any] = {
    "Bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=64),
    "CodeGen": lambda: transformers.CodeGenConfig(
        n_embd=32, n_layer=1, n_head=4, rotary_dim=4, vocab_size=64
    ),
    "MPT": lambda: transformers.MptConfig(d_model=32, n_layers=1, n_heads=2, vocab_size=64),
    "XGLM": lambda: transformers.XGLMConfig(
        d_model=32, num_layers=1, attention_heads=2, ffn_dim=32, vocab_size=64
    ),
    "GPT-J": lambda: transformers.GPTJConfig(
        n_embd=32, n_layer=1, n_head=2, rotary_dim=4, vocab_size=64
    ),
    "Falcon": lambda: transformers.FalconConfig(**SMALL, vocab_size=64),
    "GPT Neo": lambda: transformers.GPTNeoConfig(
        hidden_size=32, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], vocab_size=64
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_models_with_attention_of_their_own_are_refused(name: str) -> None:
    build = transformers.AutoModelForCausalLM.from_config
    with pytest.raises(ValueError, match='attn_implementation="tileattn" is not possible.*"eager"'):
        build(ALONE[name](), attn_implementation="tileattn")
    build(ALONE[name](), attn_implementation="eager")(input_ids=IDS)


def test_what_sdpa_refuses_is_refused() -> None:
    """Splinter takes the interface, but its layers say that they are causal, and are not."""
    config = transformers.SplinterConfig(**SMALL, vocab_size=64)
    for name in ("sdpa", "tileattn"):
        with pytest.raises(ValueError, match="sdpa|scaled_dot_product"):
            transformers.SplinterModel._from_config(config, attn_implementation=name)


def test_it_can_be_kept_for_a_part() -> None:
    """A part whose attention is picked by name does not keep the rest from tileattn."""
    config = transformers.DeepseekVLHybridConfig(
        text_config=dict(model_type="llama", **SMALL, intermediate_size=32, vocab_size=64),
        vision_config=dict(
            model_type="siglip_vision_model", **SMALL, intermediate_size=32, image_size=32
        ),
        high_res_vision_config=dict(
            model_type="sam_vision_model", **SMALL, image_size=32, global_attn_indexes=[0]
        ),
    )
    cls = transformers.DeepseekVLHybridModel
    with pytest.raises(ValueError, match="SAM_VISION_ATTENTION_CLASSES.*eager, sdpa"):
        cls._from_config(config, attn_implementation="tileattn")
    parts = {"": "tileattn", "text_config": "tileattn", "high_res_vision_config": "eager"}
    model = cls._from_config(config, attn_implementation=parts)
    assert model.language_model.config._attn_implementation == "tileattn"


def backbone() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
    )


def test_a_part_without_attention_does_not_matter() -> None:
    """DETR on a ResNet; transformers itself refuses "sdpa" there."""
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone(),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    model = transformers.DetrModel._from_config(config, attn_implementation="tileattn").eval()
    pixels = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = model(pixel_values=pixels).last_hidden_state
    model.set_attn_implementation("eager")
    torch.testing.assert_close(ours, model(pixel_values=pixels).last_hidden_state)


def test_a_model_that_never_calls_it_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_warned", set())
    model = transformers.ResNetModel._from_config(backbone(), attn_implementation="tileattn")
    with pytest.warns(UserWarning, match="ResNetModel .* nothing in it called tileattn"):
        model(torch.randn(1, 3, 64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(1, 3, 64, 64))


def llama(**options: Any) -> Any:
    config = transformers.LlamaConfig(**SMALL, intermediate_size=32, vocab_size=64, **options)
    return transformers.LlamaForCausalLM._from_config(config, attn_implementation="tileattn").eval()


def test_a_failed_pass_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is judged by itself."""
    monkeypatch.setattr(support, "_warned", set())
    with pytest.raises(ValueError, match="input_ids"):
        llama()()
    model = transformers.ResNetModel._from_config(backbone(), attn_implementation="tileattn")
    with pytest.warns(UserWarning, match="nothing in it called tileattn"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("where", ["forward", "generate"])
def test_attention_weights_are_refused(where: str) -> None:
    """transformers would collect nothing, and return ()."""
    model = llama()
    call = model
    if where == "generate":
        call = functools.partial(model.generate, max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(NotImplementedError, match='output_attentions=True needs .*"eager"'):
        call(input_ids=IDS, output_attentions=True)
    model.set_attn_implementation("eager")
    assert len(model(input_ids=IDS, output_attentions=True).attentions) == 1


# What models pass by keyword that changes nothing here: the mask has it already.
WITHOUT_EFFECT = {
    "cu_seq_lens_k",  # of the flash implementations, which get no mask of packed sequences
    "cu_seq_lens_q",
    "deterministic",
    "max_length_k",
    "max_length_q",
    "position_ids",
    "sliding_window",
}
REFUSED = {"output_attentions", "block_indices"}
ELSEWHERE = {"sinks"}  # of Inkling 2, which refuses tileattn


def calls_of_the_interface(text: str) -> Iterator[ast.Call]:
    """Each ``attention_interface(...)`` of a source; parsing whole files would take a minute."""
    for match in re.finditer(r"\battention_interface(\()", text):
        depth = 0
        for end in range(match.start(1), len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
        call = ast.parse("".join(("call", text[match.start(1) : end + 1]))).body[0]
        assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
        yield call.value


def test_every_keyword_of_the_installed_models_is_known() -> None:
    known = set(inspect.signature(attention_forward).parameters) | WITHOUT_EFFECT | REFUSED
    passed: dict[str, str] = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        for call in calls_of_the_interface(path.read_text()):
            passed.update((k.arg, path.name) for k in call.keywords if k.arg)
    assert {"scaling", "dropout", "is_causal", "indices"} < passed.keys()
    unknown = {name: file for name, file in passed.items() if name not in known | ELSEWHERE}
    assert not unknown
