"""Models of Hugging Face transformers with attn_implementation="tileattn" against "eager"."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")

from transformers import masking_utils  # noqa: E402

from tileattn.integrations.transformers import TileMask, make_mask  # noqa: E402

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


@pytest.mark.parametrize("name", DECODERS)
def test_gradients(name: str) -> None:
    eager, ours = decoder(name)
    inputs = batch(LENGTHS, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for model in (eager, ours):
        model.train()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
    expected = dict(eager.named_parameters())
    assert any(p.grad is not None and "k_proj" in n for n, p in ours.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        reference = expected[parameter_name].grad
        if reference is None:
            assert parameter.grad is None, parameter_name
        else:
            torch.testing.assert_close(
                parameter.grad,
                reference,
                rtol=1e-3,
                atol=1e-4,
                msg=lambda m, name=parameter_name: f"{name} {m}",
            )


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


def test_dropout_in_training_is_refused() -> None:
    _, ours = bert(attention_probs_dropout_prob=0.1)
    inputs = batch(LENGTHS, "right")
    ours.eval()(**inputs)
    with pytest.raises(NotImplementedError, match=r"dropout .* 0\.1"):
        ours.train()(**inputs)


def test_attention_weights_are_refused() -> None:
    _, ours = bert()
    with pytest.raises((NotImplementedError, ValueError), match="eager"):
        ours(**batch(LENGTHS, "right"), output_attentions=True)


class TestMask:
    """Which of the four forms a mask takes; the values are checked through the models above."""

    PADDED = torch.tensor([[False, True, True, True], [True, True, True, True]])

    def test_padding_of_an_encoder_is_linear(self) -> None:
        mask = make_mask(
            2,
            4,
            4,
            mask_function=masking_utils.bidirectional_mask_function,
            attention_mask=self.PADDED,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=True,
        )
        assert isinstance(mask, Tensor) and mask.shape == (2, 1, 1, 4)
        assert torch.equal(mask[:, 0, 0] == 0, self.PADDED)

    def test_padding_of_a_decoder_is_linear(self) -> None:
        mask = make_mask(2, 4, 4, attention_mask=self.PADDED)
        assert isinstance(mask, TileMask) and mask.window is None and mask.padding is not None
        assert torch.equal(mask.padding == 0, self.PADDED)

    def test_nothing_to_hide_is_no_mask(self) -> None:
        assert make_mask(2, 4, 4, attention_mask=torch.ones(2, 4, dtype=torch.bool)) is None

    def test_window(self) -> None:
        window = masking_utils.sliding_window_causal_mask_function(3)
        assert make_mask(1, 8, 8, mask_function=window) == TileMask(None, 3)
        assert make_mask(1, 2, 2, mask_function=window) is None

    @pytest.mark.parametrize("length", [1, 3, 8])
    def test_chunks_are_written_out(self, length: int) -> None:
        chunks = masking_utils.chunked_causal_mask_function(3, torch.zeros(1, dtype=torch.int64))
        mask = make_mask(1, length, 8, q_offset=8 - length, mask_function=chunks)
        written = masking_utils.sdpa_mask(
            1, length, 8, 8 - length, 0, chunks, allow_is_causal_skip=False
        )
        assert isinstance(mask, Tensor) and torch.equal(mask == 0, written)
        assert mask.shape == (1, 1, length, 8)

    def test_static_cache_is_written_out(self) -> None:
        mask = make_mask(1, 2, 8, q_offset=3)
        assert isinstance(mask, Tensor)
        assert torch.equal((mask[0, 0] == 0).sum(-1), torch.tensor([4, 5]))
