"""Jagged nested tensors: attention packs them; everything else says that it does not take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nested import nested_tensor_from_jagged

import tileattn
from tileattn import attention
from tileattn.nn import Attention

BACKENDS = ["cpu", "reference"]
LEN_Q, LEN_K = (5, 1, 9), (7, 4, 2)


def jagged(lengths: Sequence[int], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths) + sum(shape))
    parts = [torch.randn(n, *shape, generator=generator).to(dtype) for n in lengths]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


def qkv(cross: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of 4 and 2 heads; k and v share their offsets, and with q unless it is ``cross``."""
    q = jagged(LEN_Q, 4, 16)
    k = jagged(LEN_K if cross else LEN_Q, 2, 16)
    if not cross:
        k = nested_tensor_from_jagged(k.values(), q.offsets())
    return q, k, nested_tensor_from_jagged(torch.randn(k.values().shape[0], 2, 8), k.offsets())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": dict(causal=True),
    "window": dict(window=(2, 1), sink_tokens=1),
    "modifiers": dict(softcap=2.0, alibi_slopes=torch.rand(3, 4), sinks=torch.randn(4), scale=0.3),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_sequence_by_itself(name: str, cross: bool, backend: str) -> None:
    tensors = qkv(cross)
    options = OPTIONS[name] | dict(return_lse=True, backend=backend)
    out, lse = attention(*tensors, **options)
    assert out.is_nested and out.shape == (*tensors[0].shape[:3], 8)
    assert lse.is_nested and lse.shape == tensors[0].shape[:3]
    assert isinstance(attention(*tensors, **OPTIONS[name]), Tensor)
    slopes = options.pop("alibi_slopes", None)
    for n, parts in enumerate(zip(*(t.unbind() for t in tensors), strict=True)):
        own = {} if slopes is None else {"alibi_slopes": slopes[n]}
        expected = attention(*(part[None] for part in parts), **options, **own)
        torch.testing.assert_close((out[n], lse[n]), tuple(t[0] for t in expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_nested(backend: str) -> None:
    """Those of the packed call, on the leaves; also where only lse is used."""
    leaves = [t.detach().requires_grad_() for t in qkv(cross=True)]
    q, k, v = leaves
    out, lse = attention(q, k, v, causal=True, return_lse=True, backend=backend)
    (out.values().square().sum() + lse.values().nan_to_num(neginf=0.0).sin().sum()).backward()
    packed = [t.values().detach().requires_grad_() for t in leaves]
    offsets = dict(
        cu_seqlens_q=q.offsets().to(torch.int32), cu_seqlens_k=k.offsets().to(torch.int32)
    )
    out, lse = attention(*packed, **offsets, causal=True, return_lse=True, backend=backend)
    (out.square().sum() + lse.nan_to_num(neginf=0.0).sin().sum()).backward()
    for leaf, flat in zip(leaves, packed, strict=True):
        assert leaf.grad is not None and leaf.grad.is_nested and leaf.grad.shape == leaf.shape
        torch.testing.assert_close(leaf.grad.values(), flat.grad)


def test_result_goes_with_the_query() -> None:
    """It has q's own ragged size, as the sum with a residual needs."""
    q, k, v = qkv()
    out = attention(q, k, v)
    residual = nested_tensor_from_jagged(torch.ones(15, 4, 8), q.offsets())
    torch.testing.assert_close((out + residual).values(), out.values() + 1)


def test_offsets_of_their_own() -> None:
    """k and v that were made one by one have equal offsets, but not the same."""
    q, k, v = qkv(cross=True)
    other = jagged(LEN_K, 2, 8)
    other.values().copy_(v.values())
    assert other.offsets() is not k.offsets()
    torch.testing.assert_close(attention(q, k, other).values(), attention(q, k, v).values())


def test_autocast_and_low_precision() -> None:
    q, k, v = qkv()
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(q, k, v)
    assert out.dtype == torch.bfloat16 and out.is_nested
    low = attention(*(t.bfloat16() for t in (q, k, v)))
    torch.testing.assert_close(out.values(), low.values())


def test_compiled() -> None:
    leaves = [t.detach().requires_grad_() for t in qkv()]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 2, k, v, causal=True)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = []
    for call in (run, compiled):
        out = call(*leaves).values()
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        found.append([out, *(gradient.values() for gradient in gradients)])
    torch.testing.assert_close(found[1], found[0])


def test_module() -> None:
    torch.manual_seed(0)
    module, x = Attention(32, 4, causal=True), jagged(LEN_Q, 32)
    out = module(x)
    assert out.is_nested and out.shape == x.shape
    for n, part in enumerate(x.unbind()):
        torch.testing.assert_close(out[n], module(part[None])[0])


def holes() -> Tensor:
    return torch.nested.narrow(
        torch.randn(3, 9, 2, 16),
        1,
        torch.zeros(3, dtype=torch.int64),
        torch.tensor(LEN_K),
        torch.jagged,
    )


def with_(**changes: Callable[[], Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(zip("qkv", qkv(cross=True), strict=True))
    return arguments | {name: make() for name, make in changes.items()}


OFFSETS = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
STRIDED = [torch.zeros(3, 2, 16), torch.zeros(5, 2, 16)]

BAD: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], list[str]]] = {
    "k dense": (
        dict(k=lambda: torch.zeros(3, 7, 2, 16)),
        ValueError,
        ["k is a torch.float32 tensor of shape [3, 7, 2, 16]", "all of q, k and v", "nested"],
    ),
    "q dense": (dict(q=lambda: torch.zeros(3, 5, 4, 16)), ValueError, ["q is", "nested"]),
    "k missing": (dict(k=lambda: None), TypeError, ["k is None"]),
    "v strided": (
        dict(v=lambda: torch.nested.nested_tensor(STRIDED)),
        TypeError,
        ["v", "torch.strided", "layout=torch.jagged"],
    ),
    "k transposed": (
        dict(k=lambda: jagged(LEN_K, 2, 16).transpose(1, 2)),
        ValueError,
        ["k is a nested", "[batch, tokens, heads, head_dim]", "ragged"],
    ),
    "q rank": (dict(q=lambda: jagged(LEN_Q, 16)), ValueError, ["q is a nested", "[batch, tokens"]),
    "k holes": (dict(k=holes), ValueError, ["k", "holes", ".contiguous()"]),
    "v offsets": (
        dict(v=lambda: jagged((6, 5, 2), 2, 8)),
        ValueError,
        ["v has other offsets than k"],
    ),
    "k batch": (
        dict(k=lambda: jagged((3, 4), 2, 16), v=lambda: jagged((3, 4), 2, 8)),
        ValueError,
        ["k has batch 2", "q, 3"],
    ),
    "cu_seqlens": (
        dict(cu_seqlens_q=lambda: OFFSETS),
        ValueError,
        ["cu_seqlens_q", "nested", "offsets of their own"],
    ),
    "bias": (
        dict(bias=lambda: torch.zeros(3, 1, 1, 9)),
        NotImplementedError,
        ["bias with", "nested"],
    ),
    "dtype": (dict(v=lambda: jagged(LEN_K, 2, 8).half()), (TypeError), ["v has dtype"]),
    "heads": (
        dict(k=lambda: jagged(LEN_K, 3, 16), v=lambda: jagged(LEN_K, 3, 8)),
        ValueError,
        ["3 heads", "divide"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    changes, error, words = BAD[name]
    with pytest.raises(error) as caught:
        attention(**with_(**changes))
    for word in words:
        assert word in str(caught.value)


X = jagged(LEN_Q, 2, 8)
GRAM = torch.zeros(2, 2, 8)
#: functions that do not take them, with one that is nested at a time
OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "linear_attention": lambda x: tileattn.linear_attention(x, x, x),
    "linear_attention, features": lambda x: tileattn.linear_attention(x, x, x, feature_map="elu1"),
    "linear_attention, taylor2": lambda x: tileattn.linear_attention(
        x, x, x, feature_map="taylor2"
    ),
    "segment_state": lambda x: tileattn.segment_state(x, x),
    "linear_attention_step": lambda x: tileattn.linear_attention_step(x, x, x, GRAM),
    "prefix_linear_attention": lambda x: tileattn.prefix_linear_attention(x, x, x, x, x),
    "clamped_linear_attention": lambda x: tileattn.clamped_linear_attention(x, x, x),
    "local_linear_attention": lambda x: tileattn.local_linear_attention(x, x, x),
    "parallax_attention": lambda x: tileattn.parallax_attention(x, x, x, x),
    "wersa_attention": lambda x: tileattn.wersa_attention(x, x, x, torch.ones(2), GRAM[0]),
    "haar_filter": lambda x: tileattn.haar_filter(x, torch.ones(2)),
    "neighborhood_attention": lambda x: tileattn.neighborhood_attention(x, x, x, window=3),
    "halo_attention": lambda x: tileattn.halo_attention(x, x, x, block=2, halo=1),
    "windowed_attention": lambda x: tileattn.windowed_attention(x, x, x, window=2),
    "neighborhood_qk": lambda x: tileattn.neighborhood_qk(x, x, window=2),
    "neighborhood_av": lambda x: tileattn.neighborhood_av(x, x, window=2),
    "merge_attention": lambda x: tileattn.merge_attention([x, x], [x, x]),
    "softmax_rnn_attention": lambda x: tileattn.softmax_rnn_attention(x, x, x),
    "agent_attention": lambda x: tileattn.agent_attention(x, x, x, x),
    "bias": lambda x: attention(*[torch.zeros(2, 5, 2, 8)] * 3, bias=x),
    "sinks": lambda x: attention(*[torch.zeros(2, 5, 2, 8)] * 3, sinks=x),
    "log_decay": lambda x: tileattn.linear_attention(*[torch.zeros(2, 5, 2, 8)] * 3, log_decay=x),
}
SPARSE = torch.zeros(2, 5, 2, 8).to_sparse()


@pytest.mark.parametrize("name", OTHERS)
def test_others_refuse(name: str) -> None:
    nested = torch.nested.nested_tensor(STRIDED)
    for tensor, layout in ((X, "jagged"), (nested, "nested"), (SPARSE, "sparse_coo")):
        with pytest.raises((TypeError, ValueError)) as caught:
            OTHERS[name](tensor)
        assert layout in str(caught.value)


def test_sparse_is_refused() -> None:
    with pytest.raises(TypeError, match=r"q has layout torch.sparse_coo.*\.to_dense\(\)"):
        attention(SPARSE, SPARSE, SPARSE)
