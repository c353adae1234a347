"""What a mask of transformers' becomes, and that it is the mask of "eager" to everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="needs the extra 'transformers'")

from transformers import masking_utils

import tileattn
from tileattn.integrations.transformers import (
    TileMask,
    attention_forward,
    make_mask,
)

PADDED = torch.tensor([[False, True, True, True, True], [True, True, True, True, True]])
FULL = torch.ones(2, 5, dtype=torch.bool)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal": masking_utils.causal_mask_function,
    "all": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "two-sided": masking_utils.sliding_window_bidirectional_mask_function(2),
    "chunks": masking_utils.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64)),
    "prefix": masking_utils.or_masks(
        masking_utils.causal_mask_function, lambda b, h, q, k: k < torch.tensor(3)
    ),
    "packed": masking_utils.packed_sequence_compatibility_function(
        masking_utils.causal_mask_function,
        torch.tensor([[0, 1, 0, 1, 2]] * 2),
        torch.tensor([[0, 0, 1, 1, 1]] * 2),
    ),
}
PATTERNS = ("causal", "all", "window", "two-sided")


def both(name: str, queries: int = 5, **options: Any) -> tuple[Tensor | None, Tensor]:
    """Our mask and that of "eager"."""
    options = {"mask_function": FUNCTIONS[name], "q_offset": 5 - queries, **options}
    expected = masking_utils.eager_mask(2, queries, 5, **options)
    return make_mask(2, queries, 5, **options), expected


@pytest.mark.parametrize("padding", [None, FULL, PADDED], ids=["unknown", "none", "left"])
@pytest.mark.parametrize("queries", [1, 3, 5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_mask_of_eager(name: str, queries: int, padding: Tensor | None) -> None:
    mask, expected = both(name, queries, attention_mask=padding)
    assert isinstance(mask, Tensor) and isinstance(mask, TileMask) == (name in PATTERNS)
    assert mask.shape == expected.shape and mask.dtype == expected.dtype
    assert torch.equal(mask + 0, expected)


@pytest.mark.parametrize("padding", [None, PADDED], ids=["unknown", "left"])
@pytest.mark.parametrize("queries", [1, 3, 5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_attention_with_it(name: str, queries: int, padding: Tensor | None) -> None:
    """As a softmax with the mask of "eager", rows that see nothing included."""
    mask, expected = both(name, queries, attention_mask=padding)
    q, k, v = (torch.randn(2, 4, n, 16) for n in (queries, 5, 5))
    out, weights = attention_forward(torch.nn.Identity(), q, k, v, mask)
    assert weights is None
    scores = q @ k.transpose(2, 3) / 4 + expected
    torch.testing.assert_close(out, (scores.softmax(-1) @ v).transpose(1, 2))


def test_patterns_are_linear_in_the_sequence() -> None:
    for name in PATTERNS:
        mask, _ = both(name, attention_mask=PADDED)
        assert isinstance(mask, TileMask) and mask.bias is not None
        assert mask.bias.shape == (2, 1, 1, 5)
        assert torch.equal(mask.bias[:, 0, 0] == 0, PADDED)
        mask, _ = both(name, attention_mask=FULL)
        assert isinstance(mask, TileMask) and mask.bias is None


def test_no_mask_means_that_all_is_visible() -> None:
    def skipped(name: str, padding: Tensor) -> Tensor | None:
        return both(name, attention_mask=padding, allow_is_bidirectional_skip=True)[0]

    assert skipped("all", FULL) is None
    assert all(skipped(name, PADDED) is not None for name in FUNCTIONS)
    assert all(skipped(name, FULL) is not None for name in PATTERNS if name != "all")


def test_static_cache_is_written_out() -> None:
    mask = make_mask(1, 2, 8, q_offset=3)
    assert isinstance(mask, Tensor) and not isinstance(mask, TileMask)
    assert torch.equal((mask[0, 0] == 0).sum(-1), torch.tensor([4, 5]))


class TestTensor:
    """What a model may do with its mask on the way to attention."""

    def pair(self) -> tuple[TileMask, Tensor]:
        mask, expected = both("causal", attention_mask=PADDED)
        assert isinstance(mask, TileMask)
        return mask, expected

    @pytest.mark.parametrize(
        "operation",
        [
            lambda m: m[:, :, -2:, :],
            lambda m: m[:, :, :, : m.shape[-1]],
            lambda m: m.to(torch.bfloat16),
            lambda m: m.contiguous().clone(),
            lambda m: m.detach(),
        ],
    )
    def test_patterns_stay(self, operation: Callable[[Tensor], Tensor]) -> None:
        mask, expected = self.pair()
        kept = operation(mask)
        assert isinstance(kept, TileMask) and kept.causal
        actual, wanted = kept.written_out(), operation(expected)
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual.clamp(min=-1), wanted.clamp(min=-1))

    @pytest.mark.parametrize(
        "operation",
        [
            lambda m: m[:, :, :2],
            lambda m: m[:, :, ::2],
            lambda m: m[:, 0],
            lambda m: m[..., -3:],
            lambda m: m == 0,
            lambda m: m.bool(),
            lambda m: m.expand(2, 4, 5, 5) * 0.5,
            lambda m: torch.cat([m, m], dim=-1),
            lambda m: torch.nn.functional.pad(m, (0, 3)),
            lambda m: torch.where(m < 0, 0.0, m),
        ],
    )
    def test_the_rest_is_a_plain_tensor(self, operation: Callable[[Tensor], Tensor]) -> None:
        mask, expected = self.pair()
        assert type(operation(mask)) is Tensor
        assert torch.equal(operation(mask), operation(expected))

    @pytest.mark.parametrize("way", ["slice", "view", "fill", "out"])
    def test_writes_are_seen(self, way: str) -> None:
        mask, expected = self.pair()
        for m in (mask, expected):
            if way == "slice":
                m[:, :, 0, 1:3] = 0.0
            elif way == "view":
                m.view(2, 5, 5).select(1, 0).zero_()
            elif way == "fill":
                m.masked_fill_(torch.eye(5, dtype=torch.bool), -1.0)
            else:
                torch.add(m, 1.0, out=m)
        assert torch.equal(mask + 0, expected)
        q = torch.randn(2, 4, 5, 16)
        out, _ = attention_forward(torch.nn.Identity(), q, q, q, mask)
        scores = q @ q.transpose(2, 3) / 4 + expected
        torch.testing.assert_close(out, (scores.softmax(-1) @ q).transpose(1, 2))

    @pytest.mark.parametrize("padding", [None, PADDED], ids=["no padding", "padding"])
    @pytest.mark.parametrize("inside", [True, False], ids=["made inside", "an argument"])
    def test_under_compile(self, inside: bool, padding: Tensor | None) -> None:
        def layers(q: Tensor, mask: Tensor | None) -> Tensor:
            if inside:
                mask = make_mask(2, q.shape[2], q.shape[2], attention_mask=padding)
            assert mask is not None
            out, _ = attention_forward(torch.nn.Identity(), q, q, q, mask)
            last, _ = attention_forward(torch.nn.Identity(), q[:, :, -2:], q, q, mask[:, :, -2:])
            return out[:, -2:] + last + mask[:, :, 0].clamp(min=-1).sum()

        q = torch.randn(2, 4, 5, 16)
        mask = make_mask(2, 5, 5, attention_mask=padding)
        compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(q, mask), layers(q, mask))


class TestOfTheModelsOwn:
    """Masks and biases that attention gets from elsewhere broadcast as in PyTorch."""

    @pytest.mark.parametrize(
        "shape", [(5, 6), (2, 1, 1, 6), (1, 4, 5, 6), (2, 1, 1, 1), (2, 1, 5, 1)]
    )
    @pytest.mark.parametrize("kind", ["mask", "position_bias"])
    def test_shapes(self, kind: str, shape: tuple[int, ...]) -> None:
        q, k, v = (torch.randn(2, 4, n, 16, requires_grad=True) for n in (5, 6, 6))
        bias = torch.randn(shape, requires_grad=True)
        mask, position_bias = (bias, None) if kind == "mask" else (None, bias)
        out, _ = attention_forward(torch.nn.Identity(), q, k, v, mask, position_bias=position_bias)
        expected = ((q @ k.transpose(2, 3) / 4 + bias).softmax(-1) @ v).transpose(1, 2)
        torch.testing.assert_close(out, expected)
        weight = torch.randn_like(out)
        actual = torch.autograd.grad((out * weight).sum(), (q, k, v, bias), retain_graph=True)
        wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v, bias))
        for a, b in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_a_shape_that_does_not_fit(self) -> None:
        q = torch.randn(2, 4, 5, 16)
        with pytest.raises(ValueError, match=r"bias has shape \[2, 1, 5, 7\]"):
            attention_forward(torch.nn.Identity(), q, q, q, torch.zeros(2, 1, 5, 7))

    def test_is_causal_is_what_the_call_says(self) -> None:
        module = torch.nn.Identity()
        module.is_causal = True  # type: ignore[assignment]
        q = torch.randn(2, 4, 5, 16)
        everything, _ = attention_forward(module, q, q, q, None)
        causal, _ = attention_forward(module, q, q, q, None, is_causal=True)
        rows = q.transpose(1, 2)
        assert torch.equal(everything, tileattn.attention(rows, rows, rows))
        assert torch.equal(causal, tileattn.attention(rows, rows, rows, causal=True))

    def test_chosen_keys(self) -> None:
        """``indices`` of DeepSeek's sparse attention, with padding behind the mask."""
        q = torch.randn(2, 4, 5, 16)
        indices = torch.tensor([[0, 1], [1, 0], [2, 1], [0, 3], [4, 2]]).expand(2, -1, -1)
        mask, expected = both("causal", attention_mask=PADDED)
        out, _ = attention_forward(torch.nn.Identity(), q, q, q, mask, indices=indices)
        chosen = torch.zeros(2, 5, 5, dtype=torch.bool).scatter(-1, indices, True)[:, None]
        hidden = torch.finfo(torch.float32).min
        scores = q @ q.transpose(2, 3) / 4 + torch.where(chosen, expected, hidden)
        some = (chosen & (expected == 0)).any(-1).squeeze(1)  # queries that see anything
        wanted = (scores.softmax(-1) @ q).transpose(1, 2)
        torch.testing.assert_close(out[some], wanted[some])

    def test_chosen_blocks_are_refused(self) -> None:
        q = torch.randn(2, 4, 5, 16)
        with pytest.raises(NotImplementedError, match="block_indices.*sdpa"):
            attention_forward(
                torch.nn.Identity(), q, q, q, None, block_indices=torch.zeros(2, 4, 5, 1)
            )
