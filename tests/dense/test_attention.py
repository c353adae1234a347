"""The dense kernels against the reference, forward and backward."""

from __future__ import annotations

import pytest
import torch
from cases import Case, check, compare, run, upstream

from tileattn import attention

# Lengths that no tile divides, so that every border is in.
LONG = {"batch": 1, "len_q": 200, "len_k": 331}

CASES = {
    "plain": Case(),
    "one_tile": Case(len_q=16, len_k=16),
    "several_tiles": Case(**LONG),
    "mha": Case(heads=3, heads_kv=3),
    "mqa": Case(heads=6, heads_kv=1),
    "gqa_long": Case(**LONG, heads=6, heads_kv=2),
    "scale": Case(options={"scale": 0.3}),
    "negative_scale": Case(options={"scale": -0.3}),
    "zero_scale": Case(options={"scale": 0.0}),
    "causal_more_keys": Case(options={"causal": True}),
    "causal_square": Case(len_q=130, len_k=130, options={"causal": True}),
    "causal_more_queries": Case(len_q=150, len_k=70, options={"causal": True}),
    "window": Case(**LONG, options={"window": (17, 5)}),
    "window_left_only": Case(**LONG, options={"window": (40, None)}),
    "window_right_only": Case(**LONG, options={"window": (None, 9)}),
    "window_right_zero": Case(**LONG, options={"window": (None, 0)}),
    "window_unlimited": Case(options={"window": (None, None)}),
    "window_self_only": Case(len_q=53, options={"window": (0, 0)}),
    "window_wider_than_all": Case(options={"window": (10**9, 10**9)}),
    "window_causal": Case(**LONG, options={"window": (30, 30), "causal": True}),
    "window_more_queries": Case(len_q=160, len_k=50, options={"window": (20, 3)}),
    "sink_tokens": Case(**LONG, options={"window": (20, 4), "sink_tokens": 5}),
    "sink_tokens_causal": Case(
        **LONG, options={"window": (20, 0), "sink_tokens": 70, "causal": True}
    ),
    "sink_tokens_more_queries": Case(
        len_q=150, len_k=70, options={"window": (9, 0), "sink_tokens": 6, "causal": True}
    ),
    "sink_tokens_right_zero": Case(**LONG, options={"window": (None, 0), "sink_tokens": 280}),
    "sink_tokens_all": Case(options={"window": (1, 1), "sink_tokens": 10**9}),
    "sink_tokens_no_window": Case(options={"sink_tokens": 4, "causal": True}),
    "softcap": Case(options={"softcap": 2.0, "scale": 0.5}),
    "softcap_causal": Case(**LONG, options={"softcap": 30.0, "causal": True}),
    "alibi": Case(alibi="h"),
    "alibi_per_batch": Case(alibi="bh", options={"causal": True}),
    "sinks": Case(sinks=True),
    "sinks_causal_empty_rows": Case(len_q=60, len_k=20, sinks=True, options={"causal": True}),
    "everything": Case(
        **LONG,
        bias="hq",
        alibi="h",
        sinks=True,
        options={"softcap": 5.0, "causal": True, "window": (50, 0), "sink_tokens": 3},
    ),
    "one_query": Case(len_q=1, len_k=300),
    "one_query_causal": Case(len_q=1, len_k=300, options={"causal": True}),
    "few_queries": Case(len_q=5, len_k=1100, batch=1, options={"causal": True}),
    "one_key": Case(len_q=20, len_k=1),
    "one_head_dim_v_wider": Case(heads=1, heads_kv=1, dim=16, dim_v=48),
    "no_keys": Case(len_k=0),
    "no_keys_sinks": Case(len_k=0, sinks=True),
    "no_queries": Case(len_q=0),
    "empty_batch": Case(batch=0),
    "empty_rows_window": Case(len_q=90, len_k=20, options={"window": (5, 0)}),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, dtype: torch.dtype, device: str) -> None:
    check(CASES[name], dtype, device)


@pytest.mark.parametrize("dim", [8, 16, 24, 32, 40, 64, 72, 96, 104, 128, 136, 160, 192, 200, 256])
def test_head_dims(dim: int, dtype: torch.dtype, device: str) -> None:
    check(Case(batch=1, heads=2, heads_kv=1, dim=dim, options={"causal": True}), dtype, device)


@pytest.mark.parametrize(("dim", "dim_v"), [(8, 256), (256, 8), (64, 128), (128, 64), (192, 128)])
def test_value_dim_differs(dim: int, dim_v: int, dtype: torch.dtype, device: str) -> None:
    check(Case(batch=1, heads=2, heads_kv=1, dim=dim, dim_v=dim_v), dtype, device)


@pytest.mark.parametrize("full", ["-", "b", "h", "q", "bh", "bq", "hq", "bhq"])
def test_bias_broadcasts(full: str, dtype: torch.dtype, device: str) -> None:
    check(Case(bias=full), dtype, device)


@pytest.mark.parametrize("full", ["-", "bhq"])
@pytest.mark.parametrize("bias_dtype", [torch.float32, None], ids=["bias_f32", "bias_as_q"])
def test_bias_with_patterns(
    full: str, bias_dtype: torch.dtype | None, dtype: torch.dtype, device: str
) -> None:
    options = {"causal": True, "window": (90, 0), "deterministic": full == "-"}
    check(Case(**LONG, bias=full, bias_dtype=bias_dtype, options=options), dtype, device)


def test_bias_of_minus_infinity_hides(dtype: torch.dtype, device: str) -> None:
    """A padding mask as a bias: hidden keys get neither weight nor gradient."""
    tensors = Case().tensors(dtype, device)
    bias = torch.zeros(2, 1, 1, 53, dtype=dtype, device=device)
    bias[0, ..., 30:] = -torch.inf
    bias[1] = -torch.inf
    tensors["bias"] = bias
    actual = run(attention, tensors, {}, upstream(tensors["q"], tensors["q"][..., 0].float()))
    compare(tensors, {}, actual, True)
    assert not actual["dv"][0, 30:].any() and not actual["dk"][0, 30:].any()
    assert not actual["out"][1].any() and bool((actual["lse"][1] == -torch.inf).all())


PACKED = {
    "even": Case(seqlens=((40, 40), (40, 40))),
    "odd": Case(seqlens=((3, 17), (70, 5), (1, 90), (33, 33))),
    "empty_sequences": Case(seqlens=((0, 0), (12, 20), (0, 9), (7, 0), (30, 11), (0, 0))),
    "one": Case(seqlens=((65, 129),)),
    "all_empty": Case(seqlens=((0, 0), (0, 0))),
    "tail": Case(seqlens=((20, 30), (9, 4)), tail=(11, 70)),
    "long": Case(seqlens=((200, 300), (1, 2), (150, 150)), heads=2, heads_kv=1),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed(name: str, causal: bool, dtype: torch.dtype, device: str) -> None:
    case = PACKED[name]
    check(Case(**{**vars(case), "options": {"causal": causal}}), dtype, device)


def test_packed_with_modifiers(dtype: torch.dtype, device: str) -> None:
    options = {"causal": True, "window": (12, 0), "sink_tokens": 2, "softcap": 4.0}
    seqlens = ((33, 50), (0, 4), (90, 70))
    check(Case(seqlens=seqlens, alibi="bh", sinks=True, options=options), dtype, device)


@pytest.mark.parametrize("case", [Case(**LONG, bias="q"), Case(**LONG, options={"causal": True})])
def test_deterministic_is_bit_equal(case: Case, dtype: torch.dtype, device: str) -> None:
    tensors, options = case.tensors(dtype, device), case.options | {"deterministic": True}
    gradients = upstream(tensors["q"], tensors["q"][..., 0].float())
    first = run(attention, tensors, options, gradients)
    compare(tensors, options, first, True)
    for _ in range(3):
        again = run(attention, tensors, options, gradients)
        for name, value in first.items():
            assert torch.equal(value, again[name]), name


def test_calls_do_not_influence_one_another(dtype: torch.dtype, device: str) -> None:
    """Small after large and back: nothing is left over from an earlier call."""
    large, small = Case(**LONG, dim=64), Case(len_q=3, len_k=5, dim=8)
    for case in (large, small, large, small):
        check(case, dtype, device)


def test_large_scores_do_not_overflow(dtype: torch.dtype, device: str) -> None:
    check(Case(options={"scale": 40.0}), dtype, device, with_grad=False)
