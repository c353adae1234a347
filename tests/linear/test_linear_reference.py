"""The reference of linear attention against cases worked out by hand and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tileattn.reference import linear_attention

HALF = torch.tensor([math.log(0.5)], dtype=torch.float64)


def row(*values: float) -> Tensor:
    """Tokens of one head with one channel: [1, T, 1, 1]."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def quadratic(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """((Q K^T) . D) V with D_ij = prod of the decays of tokens j + 1 .. i; [B, T, H, D]."""
    total = log_decay.cumsum(1).transpose(1, 2)
    decay = (total[..., :, None] - total[..., None, :]).exp().tril()
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bjhe->bihe", scores * decay, v)


def test_by_hand_without_decay() -> None:
    # S = 1*4 = 4, then 4 + 2*5 = 14, then 14 - 1*6 = 8.
    out, state = linear_attention(
        row(1, 2, 3), row(1, 2, -1), row(4, 5, 6), return_final_state=True
    )
    torch.testing.assert_close(out, row(4, 28, 24))
    assert state.item() == 8


def test_by_hand_with_decay() -> None:
    # S = 4, then 2 + 10 = 12, then 6 - 6 = 0.
    options = {"log_decay": HALF, "scale": 10.0, "return_final_state": True}
    out, state = linear_attention(row(1, 2, 3), row(1, 2, -1), row(4, 5, 6), **options)
    torch.testing.assert_close(out, row(40, 240, 0))
    assert state.item() == 0


def test_by_hand_from_a_state() -> None:
    # The first decay already applies to the state that comes in: S = 4 / 2 + 4 = 6.
    state = torch.full((1, 1, 1, 1), 4.0, dtype=torch.float64)
    options = {"log_decay": HALF, "initial_state": state}
    torch.testing.assert_close(linear_attention(row(1), row(1), row(4), **options), row(6))


def test_by_hand_normalized() -> None:
    # z = 1, then 3: means 4 and (4 + 10) / 3; the query 0 has no mean.
    out, (s, z) = linear_attention(
        row(1, 2, 0), row(1, 2, 1), row(4, 5, 6), normalize=True, return_final_state=True
    )
    torch.testing.assert_close(out, row(4, 14 / 3, 0))
    assert (s.item(), z.item()) == (20, 4)


def test_by_hand_bidirectional() -> None:
    out = linear_attention(row(1, 2, 3), row(1, 2, -1), row(4, 5, 6), causal=False)
    torch.testing.assert_close(out, row(8, 16, 24))


def test_by_hand_packed() -> None:
    cu = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    out, state = linear_attention(
        row(1, 1, 1, 1), row(1, 1, 1, 1), row(1, 2, 3, 4), cu_seqlens=cu, return_final_state=True
    )
    torch.testing.assert_close(out, row(1, 3, 3, 0))  # the last token belongs to no sequence
    assert state.flatten().tolist() == [3, 0, 3]


@pytest.mark.parametrize("causal", [True, False])
def test_unnormalized_is_masked_attention_without_softmax(causal: bool) -> None:
    q, k, v = normal(2, 9, 3, 4), normal(2, 9, 3, 4), normal(2, 9, 3, 5)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
    scores = scores.tril() if causal else scores
    expected = torch.einsum("bhij,bjhe->bihe", scores, v)
    torch.testing.assert_close(linear_attention(q, k, v, causal=causal), expected)


def test_data_dependent_decay_is_the_quadratic_form() -> None:
    q, k, v = normal(2, 9, 3, 4), normal(2, 9, 3, 4), normal(2, 9, 3, 5)
    log_decay = -normal(2, 9, 3).abs()
    expected = quadratic(q, k, v, log_decay)
    torch.testing.assert_close(linear_attention(q, k, v, log_decay=log_decay), expected)


def test_heads_share_keys() -> None:
    q, k, v = normal(1, 5, 6, 4), normal(1, 5, 2, 4), normal(1, 5, 2, 3)
    out = linear_attention(q, k, v)
    for head in range(6):
        kv = slice(head // 3, head // 3 + 1)
        alone = linear_attention(q[:, :, head : head + 1], k[:, :, kv], v[:, :, kv])
        torch.testing.assert_close(out[:, :, head : head + 1], alone)


@pytest.mark.parametrize("normalize", [False, True])
def test_two_calls_are_one(normalize: bool) -> None:
    q, k, v = normal(2, 9, 3, 4).exp(), normal(2, 9, 3, 4).exp(), normal(2, 9, 3, 5)
    options = {"log_decay": -normal(2, 9, 3).abs(), "normalize": normalize}
    whole, last = linear_attention(q, k, v, **options, return_final_state=True)
    state, parts = None, []
    for rows in (slice(0, 4), slice(4, 4), slice(4, 9)):
        part = options | {"log_decay": options["log_decay"][:, rows]}
        out, state = linear_attention(
            q[:, rows], k[:, rows], v[:, rows], **part, initial_state=state, return_final_state=True
        )
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


def test_feature_map_is_applied_to_both() -> None:
    q, k, v = normal(1, 5, 2, 4), normal(1, 5, 2, 4), normal(1, 5, 2, 3)
    out = linear_attention(q, k, v, feature_map=torch.relu)
    torch.testing.assert_close(out, linear_attention(q.relu(), k.relu(), v))


def test_gradients() -> None:
    q, k, v = (normal(1, 4, 2, 3).requires_grad_() for _ in range(3))
    decay = (-normal(1, 4, 2).abs()).detach().requires_grad_()
    state = normal(1, 2, 3, 3).requires_grad_()

    def function(*leaves: Tensor) -> object:
        q, k, v, log_decay, initial_state = leaves
        options = {"log_decay": log_decay, "initial_state": initial_state}
        return linear_attention(q, k, v, **options, return_final_state=True)

    assert torch.autograd.gradcheck(function, (q, k, v, decay, state))


def test_inputs_are_computed_in_float32() -> None:
    q, k, v = (normal(1, 40, 2, 8).bfloat16() for _ in range(3))
    out, state = linear_attention(q, k, v, return_final_state=True)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(out, linear_attention(q.float(), k.float(), v.float()).bfloat16())
