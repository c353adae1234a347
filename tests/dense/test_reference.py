"""The reference itself: against torch, against hand-worked cases, its gradients numerically."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tileattn import reference

NEG = -torch.inf


def inputs(
    len_q: int = 7, len_k: int = 9, heads: int = 4, heads_kv: int = 2, dim: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, len_q, heads, dim), (2, len_k, heads_kv, dim), (2, len_k, heads_kv, dim)
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return q, k, v


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    """torch's function on our layout."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2)


def test_equals_sdpa() -> None:
    q, k, v = inputs()
    torch.testing.assert_close(reference.attention(q, k, v), sdpa(q, k, v))
    torch.testing.assert_close(reference.attention(q, k, v, scale=0.7), sdpa(q, k, v, scale=0.7))


def test_causal_equals_sdpa_on_squares() -> None:
    q, k, v = inputs(len_q=9)
    torch.testing.assert_close(
        reference.attention(q, k, v, causal=True), sdpa(q, k, v, is_causal=True)
    )


def test_bias_equals_sdpa_mask() -> None:
    q, k, v = inputs()
    bias = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(
        reference.attention(q, k, v, bias=bias), sdpa(q, k, v, attn_mask=bias)
    )


def test_gradients_equal_those_of_sdpa() -> None:
    ours, theirs = ([t.requires_grad_() for t in inputs()] for _ in range(2))
    reference.attention(*ours).square().sum().backward()
    sdpa(*theirs).square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("value", [-1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_by_a_large_number_equal_those_of_softmax(value: float, dtype: torch.dtype) -> None:
    """Rows masked whole, too; gradients included."""
    bias = torch.zeros(2, 1, 7, 9, dtype=dtype)
    bias[0, ..., 2:], bias[1, :, ::2] = value, value
    ours, theirs = ([t.to(dtype).requires_grad_() for t in inputs()] for _ in range(2))
    out = reference.attention(*ours, bias=bias, scale=1.0)
    q, k, v = (t.repeat_interleave(4 // t.shape[2], dim=2) for t in theirs)
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) + bias).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, v)
    torch.testing.assert_close(out, expected)
    for results, leaves in ((out, ours), (expected, theirs)):
        results.square().sum().backward(inputs=leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_lse_is_the_logarithm_of_the_row_sum() -> None:
    q, k, v = inputs()
    _, lse = reference.attention(q, k, v, scale=0.5, return_lse=True)
    scores = 0.5 * torch.einsum("bihd,bjhd->bihj", q, k.repeat_interleave(2, dim=2))
    torch.testing.assert_close(lse, scores.logsumexp(-1))


# Masks written down by hand: rows are queries, columns keys.
MASKS = {
    "causal, as many keys": (3, 3, {"causal": True}, ["1..", "11.", "111"]),
    "causal, more keys": (2, 4, {"causal": True}, ["111.", "1111"]),
    "causal, more queries": (4, 2, {"causal": True}, ["..", "..", "1.", "11"]),
    "window (1, 0)": (4, 4, {"window": (1, 0)}, ["1...", "11..", ".11.", "..11"]),
    "window (0, 1)": (3, 3, {"window": (0, 1)}, ["11.", ".11", "..1"]),
    "window (None, 0)": (2, 3, {"window": (None, 0)}, ["11.", "111"]),
    "window (0, None)": (2, 3, {"window": (0, None)}, [".11", "..1"]),
    "window, more keys": (2, 5, {"window": (1, 1)}, ["..111", "...11"]),
    "window, more queries": (4, 2, {"window": (0, 0)}, ["..", "..", "1.", ".1"]),
    "window wider than causal": (2, 3, {"window": (0, 5), "causal": True}, [".1.", "..1"]),
    "sink": (4, 4, {"window": (0, 0), "sink_tokens": 1}, ["1...", "11..", "1.1.", "1..1"]),
    "sink ahead": (3, 3, {"window": (0, 0), "sink_tokens": 2}, ["11.", "11.", "111"]),
    "sink ahead, causal": (
        3,
        3,
        {"window": (0, 0), "sink_tokens": 2, "causal": True},
        ["1..", "11.", "111"],
    ),
    "sink beyond the keys": (1, 2, {"window": (0, 0), "sink_tokens": 9}, ["11"]),
    "sink without window": (2, 2, {"sink_tokens": 1, "causal": True}, ["1.", "11"]),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_by_hand(name: str) -> None:
    len_q, len_k, options, rows = MASKS[name]
    mask = reference.attention_mask(len_q, len_k, **options)
    assert ["".join(".1"[int(x)] for x in row) for row in mask] == rows


def one(*values: float) -> Tensor:
    """[1, n, 1, 1]: one batch entry, one head, one channel."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def test_two_keys_by_hand() -> None:
    """Scores 0 and log 3 weigh 1/4 and 3/4."""
    out, lse = reference.attention(
        one(1.0), one(0.0, math.log(3)), one(8.0, 4.0), scale=1.0, return_lse=True
    )
    assert out.item() == pytest.approx(0.25 * 8 + 0.75 * 4)
    assert lse.item() == pytest.approx(math.log(4))


def test_sink_by_hand() -> None:
    """A sink of log 4 takes half of the weight and has no value."""
    sink = torch.tensor([math.log(4)], dtype=torch.float64)
    out, lse = reference.attention(
        one(1.0), one(0.0, math.log(3)), one(8.0, 4.0), scale=1.0, sinks=sink, return_lse=True
    )
    assert out.item() == pytest.approx(0.5 * 5)
    assert lse.item() == pytest.approx(math.log(8))


def test_modifiers_by_hand() -> None:
    """In the order scale, softcap, ALiBi, bias: 3 tanh(0.5 * 2 / 3) - 0.5 * 1 + 0.25."""
    _, lse = reference.attention(
        one(2.0, 0.0)[:, :1],
        one(1.0, 0.0)[:, :1].expand(1, 2, 1, 1),
        one(0.0, 0.0),
        scale=0.5,
        softcap=3.0,
        alibi_slopes=torch.tensor([0.5]),
        bias=torch.tensor([0.25, NEG], dtype=torch.float64).reshape(1, 1, 1, 2),
        return_lse=True,
    )
    assert lse.item() == pytest.approx(3 * math.tanh(1 / 3) - 0.5 + 0.25)


def test_query_heads_share_key_heads_in_groups() -> None:
    q, k, v = inputs(heads=6, heads_kv=2)
    out = reference.attention(q, k, v)
    for head in range(6):
        pair = slice(head // 3, head // 3 + 1)
        alone = reference.attention(q[:, :, head : head + 1], k[:, :, pair], v[:, :, pair])
        torch.testing.assert_close(out[:, :, head : head + 1], alone)


def test_packed_equals_one_by_one() -> None:
    q, k, v = (t.flatten(0, 1) for t in inputs())
    cu_q = torch.tensor([0, 5, 5, 12], dtype=torch.int32)
    cu_k = torch.tensor([0, 8, 14, 14], dtype=torch.int32)
    out, lse = reference.attention(
        q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=True, return_lse=True
    )
    first = reference.attention(q[None, :5], k[None, :8], v[None, :8], causal=True)
    torch.testing.assert_close(out[:5], first[0])
    # The third sequence has no keys, and two tokens belong to no sequence.
    assert not out[5:].any() and bool((lse[5:] == NEG).all())


def test_empty_rows_have_finite_gradients() -> None:
    q, k, v = (t.requires_grad_() for t in inputs(len_q=9, len_k=4))
    out, lse = reference.attention(q, k, v, causal=True, return_lse=True)
    assert not out[:, :5].any() and bool((lse[:, :5] == NEG).all())
    gradients = torch.autograd.grad(
        (out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse))
    )
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert not gradients[0][:, :5].any()


OPTIONS = {
    "plain": {},
    "causal window": {"causal": True, "window": (2, 0), "sink_tokens": 1},
    "softcap": {"softcap": 1.5},
    "empty rows": {"window": (0, 0)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(name: str) -> None:
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sinks: Tensor) -> object:
        slopes = torch.tensor([0.3, 0.1])
        return reference.attention(
            q, k, v, bias=bias, sinks=sinks, alibi_slopes=slopes, return_lse=True, **OPTIONS[name]
        )

    arguments = leaf(1, 4, 2, 3), leaf(1, 3, 1, 3), leaf(1, 3, 1, 2), leaf(1, 2, 1, 3), leaf(2)
    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)
