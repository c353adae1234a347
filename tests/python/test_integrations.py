"""Models of Hugging Face transformers with attn_implementation="tileattn" against "eager"."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")

import tileattn.integrations.transformers  # noqa: E402
from tileattn.integrations.transformers import attention  # noqa: E402

SMALL: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
DECODERS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "odd head dim": lambda: transformers.LlamaConfig(**SMALL, head_dim=12),
    "mistral, window": lambda: transformers.MistralConfig(**SMALL, sliding_window=7),
    "gemma2, softcap": lambda: transformers.Gemma2Config(
        **SMALL, head_dim=16, sliding_window=6, attn_logit_softcapping=2.0
    ),
    "gpt-oss, sinks": lambda: transformers.GptOssConfig(
        **SMALL, head_dim=16, sliding_window=6, num_local_experts=2, num_experts_per_tok=1
    ),
}
LENGTHS = (19, 11, 1)


def pair(model: Any) -> tuple[Any, Any]:
    """The same weights with eager attention and with ours."""
    model.set_attn_implementation("eager")
    ours = copy.deepcopy(model)
    ours.set_attn_implementation("tileattn")
    assert ours.config._attn_implementation == "tileattn"
    return model.eval(), ours.eval()


def decoder(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(DECODERS[name]())
    for parameter in model.parameters():  # larger scores than at the usual start of training
        torch.nn.init.normal_(parameter, std=0.2)
    return pair(model)


def batch(lengths: tuple[int, ...], side: str, vocab: int = 64) -> dict[str, Tensor]:
    """Token ids and the mask of sequences padded to the longest on one side."""
    longest = max(lengths)
    column = torch.arange(longest)
    rows = [column < n if side == "right" else column >= longest - n for n in lengths]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocab, (len(lengths), longest), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.stack(rows).long()}


def assert_same(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    """Equal up to float32 rounding, where the tokens are real."""
    if mask is not None:
        actual, expected = actual[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_with_padding(name: str, side: str) -> None:
    eager, ours = decoder(name)
    inputs = batch(LENGTHS, side)
    with torch.no_grad():
        expected, actual = eager(**inputs).logits, ours(**inputs).logits
    assert_same(actual, expected, inputs["attention_mask"])


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_without_padding(name: str) -> None:
    eager, ours = decoder(name)
    inputs = batch((19, 19), "right")
    with torch.no_grad():
        assert_same(ours(**inputs).logits, eager(**inputs).logits)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_cache(name: str, cache: str) -> None:
    eager, ours = decoder(name)
    options: dict[str, Any] = dict(
        max_new_tokens=12,
        do_sample=False,
        cache_implementation=cache,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
        eos_token_id=None,
        disable_compile=True,
    )
    inputs = batch(LENGTHS, "left")
    expected, actual = eager.generate(**inputs, **options), ours.generate(**inputs, **options)
    assert_same(torch.stack(actual.logits), torch.stack(expected.logits))
    assert torch.equal(actual.sequences, expected.sequences)


@pytest.mark.parametrize("name", ["llama", "mistral, window"])
def test_several_tokens_on_top_of_a_cache(name: str) -> None:
    """Query i of a later chunk sees the keys up to its own position, not up to i."""
    eager, ours = decoder(name)
    ids = batch((24,), "right")["input_ids"]
    with torch.no_grad():
        whole = eager(input_ids=ids).logits
        cache = transformers.DynamicCache(config=ours.config)
        parts = [
            ours(input_ids=part, past_key_values=cache).logits for part in ids.split((10, 9, 5), 1)
        ]
    assert_same(torch.cat(parts, 1), whole)


def assert_same_gradients(ours: Any, eager: Any, inputs: dict[str, Tensor]) -> None:
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for model in (eager, ours):
        model.train()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
    expected = dict(eager.named_parameters())
    assert any(p.grad is not None and "k_proj" in n for n, p in ours.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted, message = expected[name].grad, lambda m, name=name: f"{name} {m}"
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-4, msg=message)


@pytest.mark.parametrize("name", DECODERS)
def test_gradients(name: str) -> None:
    eager, ours = decoder(name)
    assert_same_gradients(ours, eager, batch(LENGTHS, "right"))


def bert(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, **options
    )
    return pair(transformers.BertModel(config, add_pooling_layer=False))


@pytest.mark.parametrize("side", ["left", "right"])
def test_encoder_with_padding(side: str) -> None:
    eager, ours = bert()
    inputs = batch(LENGTHS, side)
    with torch.no_grad():
        expected = eager(**inputs).last_hidden_state
        actual = ours(**inputs).last_hidden_state
    assert_same(actual, expected, inputs["attention_mask"])


def test_encoder_decoder_with_position_bias() -> None:
    """T5: a learned bias per head, cross-attention, both kinds of padding."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    eager, ours = pair(transformers.T5ForConditionalGeneration(config))
    source, target = batch(LENGTHS, "right"), batch((9, 5, 7), "right")
    inputs = dict(
        **source,
        decoder_input_ids=target["input_ids"],
        decoder_attention_mask=target["attention_mask"],
    )
    with torch.no_grad():
        expected, actual = eager(**inputs).logits, ours(**inputs).logits
    assert_same(actual, expected, target["attention_mask"])


def test_compiled_decoder() -> None:
    eager, ours = decoder("llama")
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    inputs = batch(LENGTHS, "right")
    with torch.no_grad():
        expected = eager(**inputs, use_cache=False).logits
        actual = compiled(**inputs, use_cache=False).logits
    assert_same(actual, expected, inputs["attention_mask"])


def paligemma() -> tuple[Any, Any]:
    torch.manual_seed(0)
    text = dict(SMALL, model_type="gemma", head_dim=16)
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=64, image_token_id=63
    )
    return pair(transformers.PaliGemmaForConditionalGeneration(config))


@pytest.mark.parametrize("types", [False, True], ids=["no types", "token types"])
def test_a_prefix_that_sees_all_of_itself(types: bool) -> None:
    """PaliGemma asks for a causal mask or for one with a prefix; its layers say neither."""
    eager, ours = paligemma()
    inputs = batch((19, 19), "right", vocab=60)
    if types:
        inputs["token_type_ids"] = (torch.arange(19) >= 7).long().expand(2, -1)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, -1] = 3
    with torch.no_grad():
        expected, actual = eager(**inputs).logits, ours(**inputs).logits
        later = ours(**changed).logits
    assert_same(actual, expected)
    assert torch.equal(later[:, :-1], actual[:, :-1])


def test_linear_layers_before_the_first_attention() -> None:
    """MiniMax's masks of later steps are as long as the cache of its first, linear layer: 1."""
    torch.manual_seed(0)
    config = transformers.MiniMaxConfig(
        **SMALL,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        block_size=8,
        layer_types=["linear_attention", "full_attention"],
    )
    model = transformers.MiniMaxForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    eager, ours = pair(model)
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    inputs = batch(LENGTHS, "left")
    expected, actual = (
        model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True).logits
        for model in (eager, ours)
    )
    assert_same(torch.stack(actual), torch.stack(expected))


@pytest.mark.parametrize("head_dim", [20, 512])
def test_head_dims_without_kernels(head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "_warned", set())
    config = transformers.LlamaConfig(**SMALL, head_dim=head_dim)
    eager, ours = pair(transformers.AutoModelForCausalLM.from_config(config))
    inputs = batch(LENGTHS, "left")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same(ours(**inputs).logits, eager(**inputs).logits)
        assert_same_gradients(ours, eager, batch(LENGTHS, "right"))
    assert len([w for w in caught if "heads of 512" in str(w.message)]) == (head_dim > 256)


def test_a_backend_that_was_asked_for_is_kept() -> None:
    _, ours = pair(
        transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**SMALL, head_dim=512)
        )
    )
    with tileattn.use_backend("cpu"), pytest.raises(ValueError, match="head_dim 512.*reference"):
        ours(**batch(LENGTHS, "left"))


def test_dropout_in_training_is_refused() -> None:
    _, ours = bert(attention_probs_dropout_prob=0.1)
    inputs = batch(LENGTHS, "right")
    ours.eval()(**inputs)
    with pytest.raises(NotImplementedError, match=r"dropout .* 0\.1"):
        ours.train()(**inputs)


def test_attention_weights_are_refused() -> None:
    _, ours = bert()
    with pytest.raises(NotImplementedError, match="eager"):
        ours(**batch(LENGTHS, "right"), output_attentions=True)
    ours(**batch(LENGTHS, "right"))
