"""merge_attention joins partial results into the whole."""

from __future__ import annotations

import pytest
import torch
from cases import Case
from tolerance import assert_as_exact

from tileattn import attention, merge_attention, reference


@pytest.mark.parametrize("cuts", [(20, 53), (1, 7, 30, 53), (53,), (0, 53), (10, 10, 53)])
def test_parts_of_the_keys_merge_into_the_whole(
    cuts: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    tensors = Case().tensors(dtype, device)
    q, k, v = (tensors[name] for name in "qkv")
    parts = [
        attention(q, k[:, begin:end], v[:, begin:end], return_lse=True)
        for begin, end in zip((0, *cuts), cuts, strict=False)
    ]
    out, lse = merge_attention(*zip(*parts, strict=True))
    exact = reference.attention(*(t.double() for t in (q, k, v)), return_lse=True)
    peer = reference.attention(q, k, v, return_lse=True, compute_dtype=dtype)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert_as_exact("out", out, exact[0], peer[0])
    assert_as_exact("lse", lse, exact[1], reference.attention(q, k, v, return_lse=True)[1])


def test_gradients_flow_through_parts() -> None:
    """The gradient of the whole, although each part only sees its own keys."""
    tensors = Case().tensors(torch.float64, "cpu")
    leaves = [tensors[name].requires_grad_() for name in "qkv"]
    q, k, v = leaves
    whole = reference.attention(q, k, v, return_lse=True)
    parts = [
        reference.attention(q, k[:, span], v[:, span], return_lse=True)
        for span in (slice(0, 20), slice(20, 53))
    ]
    merged = merge_attention(*zip(*parts, strict=True))
    arriving = [torch.randn_like(t) for t in whole]
    expected = torch.autograd.grad(whole, leaves, arriving)
    actual = torch.autograd.grad(merged, leaves, arriving)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    outs = torch.randn(3, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    lses = torch.randn(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda o, s: merge_attention(o.unbind(), s.unbind()), (outs, lses)
    )


def test_unseen_parts_count_nothing() -> None:
    out = torch.randn(1, 2, 1, 4)
    outs = torch.stack([out, torch.zeros_like(out)]).requires_grad_()
    lses = torch.tensor([0.5, -torch.inf]).reshape(2, 1, 1, 1).expand(2, 1, 2, 1).clone()
    lses[0, 0, 1] = -torch.inf  # the second row is seen by no part
    lses.requires_grad_()
    merged, lse = merge_attention(outs, lses)
    torch.testing.assert_close(merged[:, 0], out[:, 0])
    assert not merged[:, 1].any()
    assert lse.flatten().tolist() == [0.5, -torch.inf]
    gradients = torch.autograd.grad((merged, lse), (outs, lses), (merged, torch.ones_like(lse)))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_unseen_parts_may_hold_anything(value: float) -> None:
    """Others than ours leave NaN there."""
    out, lse = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 2)
    found = []
    for unseen in (0.0, value):
        outs = torch.stack([out, torch.full_like(out, unseen)]).requires_grad_()
        lses = torch.stack([lse, torch.full_like(lse, -torch.inf)]).requires_grad_()
        merged = merge_attention(outs, lses)
        found.append((*merged, *torch.autograd.grad(merged[0].sin().sum(), (outs, lses))))
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


BAD = {
    "nothing": ([], [], ValueError, "at least one"),
    "lengths": ([torch.zeros(1, 2, 1, 4)], [], ValueError, "as many"),
    "dtypes": (
        [torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4).half()],
        2,
        TypeError,
        r"outs\[1\]",
    ),
    "shapes": ([torch.zeros(1, 2, 1, 4), torch.zeros(1, 3, 1, 4)], 2, ValueError, r"outs\[1\]"),
    "lse shape": ([torch.zeros(1, 3, 1, 4)], 1, ValueError, r"lses\[0\]"),
    "no tensor": ([None], 1, TypeError, r"outs\[0\]"),
    "integers": ([torch.zeros(1, 2, 1, 4).int()], 1, TypeError, r"outs\[0\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts(name: str) -> None:
    outs, lses, error, words = BAD[name]
    if isinstance(lses, int):
        lses = [torch.zeros(1, 2, 1)] * lses
    with pytest.raises(error, match=words):
        merge_attention(outs, lses)
