"""Functions, settings and modules under NATTEN's names: what its users write means the same."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from grid_cases import GridCase
from torch import Tensor

import tileattn
from tileattn import neighborhood_attention
from tileattn.integrations import natten
from tileattn.integrations.natten import functional
from tileattn.integrations.natten.context import MemoryUsagePreference, NattenContext
from tileattn.integrations.natten.types import KernelSchedule
from tileattn.integrations.natten.utils.varlen import generate_varlen_parameters

GRIDS = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}
FUNCTIONS = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}
MODULES = {
    1: natten.NeighborhoodAttention1D,
    2: natten.NeighborhoodAttention2D,
    3: natten.NeighborhoodAttention3D,
}
every_rank = pytest.mark.parametrize("rank", GRIDS)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    NattenContext.reset()


def tensors(rank: int) -> tuple[Tensor, ...]:
    """query, key, value, additional keys and values."""
    return tuple(GridCase(GRIDS[rank], {}, extra=2).tensors(torch.float32, "cpu").values())


@every_rank
def test_by_position_and_by_name(rank: int) -> None:
    """Every argument in its place, those that only tune NATTEN's kernels included."""
    query, key, value, more_keys, more_values = tensors(rank)
    causal = (True,) + (False,) * (rank - 1)
    expected = neighborhood_attention(
        query,
        key,
        value,
        window=3,
        stride=2,
        causal=causal,
        scale=0.3,
        extra_keys=more_keys,
        extra_values=more_values,
        return_lse=True,
    )
    own = dict(
        is_causal=causal, scale=0.3, additional_keys=more_keys, additional_values=more_values
    )
    tuning = dict(
        attention_kwargs={"backend": "cutlass-fmha"},
        backend="cutlass-fna",
        q_tile_shape=(8,) * rank,
        kv_tile_shape=(8,) * rank,
        backward_q_tile_shape=(8,) * rank,
        backward_kv_tile_shape=(8,) * rank,
        backward_kv_splits=(2,) * rank,
        backward_use_pt_reduction=True,
        run_persistent_kernel=False,
        kernel_schedule=KernelSchedule.NonPersistent,
        torch_compile=True,
    )
    for function in (FUNCTIONS[rank], functional.neighborhood_attention_generic):
        named = function(
            query=query,
            key=key,
            value=value,
            kernel_size=3,
            stride=2,
            dilation=1,
            **own,
            **tuning,
            return_lse=True,
        )
        placed = function(query, key, value, 3, 2, 1, *own.values(), *tuning.values(), True)
        for found in (named, placed):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert torch.equal(
            function(query, key, value, 3, 2, 1, causal, 0.3, *tensors(rank)[3:]), expected[0]
        )


@every_rank
def test_none_and_zero_stand_for_the_defaults(rank: int) -> None:
    query, key, value, *_ = tensors(rank)
    expected = neighborhood_attention(query, key, value, window=3)
    for options in (
        dict(stride=None, dilation=None, is_causal=None, scale=None),
        dict(scale=0.0),
        dict(scale=0, stride=(1,) * rank, is_causal=np.bool_(False)),
    ):
        assert torch.equal(FUNCTIONS[rank](query, key, value, np.int64(3), **options), expected)
    torch.manual_seed(0)
    module = MODULES[rank](32, 4, 3, None, None, None, True, 0.0)
    assert module.scale == 8**-0.5 and module.stride == (1,) * rank


def test_what_it_does_not_know_is_refused() -> None:
    q = torch.zeros(1, 5, 6, 2, 16)
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel'"):
        natten.na2d(q, q, q, 3, kernel=3)
    with pytest.raises(ValueError, match="na1d takes"):
        natten.na1d(q, q, q, 3)
    with pytest.raises(ValueError, match="backend is 'fna'; allowed"):
        natten.na2d(q, q, q, 3, backend="fna")
    with pytest.raises(ValueError, match="window is 7 on axis 0"):
        natten.na2d(q, q, q, 7)


def causal_by_definition(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Query i sees keys 0 to i; [tokens, heads, head_dim] in float64."""
    query, key, value = query.double(), key.double(), value.double()
    scores = torch.einsum("ihd,jhd->hij", query, key) * query.shape[-1] ** -0.5
    hidden = torch.arange(key.shape[0]) > torch.arange(query.shape[0])[:, None]
    scores = scores.masked_fill(hidden, -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), value), scores.logsumexp(-1).mT


#: (queries, keys) of sequences
LENGTHS = [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1)]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_attention(queries: int, keys: int) -> None:
    """The causal mask is aligned top-left, with fewer keys than queries and with more."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, queries, 2, 16),
        torch.randn(2, keys, 2, 16),
        torch.randn(2, keys, 2, 8),
    )
    out, lse = natten.attention(q, k, v, return_lse=True)
    assert torch.equal(out, tileattn.attention(q, k, v))
    assert torch.equal(natten.attention(q, k, v, False, 0.0), out)
    torch.testing.assert_close(
        natten.attention(q, k, v, scale=0.3), tileattn.attention(q, k, v, scale=0.3)
    )
    out, lse = natten.attention(q, k, v, np.bool_(True), return_lse=True)
    for n in range(2):
        expected = causal_by_definition(q[n], k[n], v[n])
        torch.testing.assert_close(
            (out[n].double(), lse[n].double()), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("by", ["offsets", "lengths"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("same", [False, True], ids=["different lengths", "equal lengths"])
def test_packed_attention(is_causal: bool, same: bool, by: str) -> None:
    torch.manual_seed(0)
    pairs = [(max(pair), max(pair)) if same else pair for pair in LENGTHS]
    lengths = [torch.tensor(n, dtype=torch.int32) for n in zip(*pairs, strict=True)]
    q = torch.randn(1, sum(n for n, _ in pairs), 2, 16, requires_grad=True)
    k = torch.randn(1, sum(n for _, n in pairs), 2, 16, requires_grad=True)
    v = torch.randn(1, k.shape[1], 2, 8, requires_grad=True)
    options: dict[str, Any] = dict(seqlens_Q=lengths[0], seqlens_KV=lengths[1])
    if by == "offsets":
        names = "cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV"
        found = generate_varlen_parameters(q, k, v, *lengths)
        options = dict(zip(names, found, strict=True))
        for offsets, n in zip(found[:2], zip(*pairs, strict=True), strict=True):
            assert offsets is not None and offsets.dtype == torch.int32
            assert offsets.tolist() == [0, *accumulate(n)]
        assert found[2:] == tuple(max(n) for n in zip(*pairs, strict=True))
    out, lse = natten.attention(q, k, v, is_causal, **options, return_lse=True)
    assert out.shape == (*q.shape[:3], 8) and lse.shape == q.shape[:3]
    split_q, split_k = (n.tolist() for n in lengths)
    parts = zip(q[0].split(split_q), k[0].split(split_k), v[0].split(split_k), strict=True)
    outs, lses = [], []
    for part_q, part_k, part_v in parts:
        one = natten.attention(part_q[None], part_k[None], part_v[None], is_causal, return_lse=True)
        outs.append(one[0][0])
        lses.append(one[1][0])
    expected = torch.cat(outs)[None], torch.cat(lses)[None]
    torch.testing.assert_close((out, lse), expected)
    found = [
        torch.autograd.grad(o.square().sum() + e.sin().sum(), (q, k, v))
        for o, e in ((out, lse), expected)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_bad_packed_attention() -> None:
    q = torch.zeros(1, 5, 2, 16)
    two, ends = torch.tensor([2, 3], dtype=torch.int32), torch.tensor([0, 5], dtype=torch.int32)
    for options, error, message in (
        (dict(seqlens_Q=two), ValueError, "seqlens_KV is None"),
        (dict(seqlens_Q=two.long(), seqlens_KV=two), TypeError, "seqlens_Q has dtype torch.int64"),
        (dict(seqlens_Q=two, seqlens_KV=two[:1]), ValueError, "seqlens_KV has 1 entries"),
        (dict(cumulative_seqlen_Q=ends), ValueError, "both"),
        (dict(max_seqlen_Q=5, max_seqlen_KV=5), ValueError, "max_seqlen_Q is 5"),
    ):
        with pytest.raises(error, match=message):
            natten.attention(q, q, q, **options)
    batch = torch.zeros(2, 5, 2, 16)
    with pytest.raises(ValueError, match=r"query is .*\[2, 5, 2, 16\].*in a row"):
        natten.attention(batch, batch, batch, cumulative_seqlen_Q=ends, cumulative_seqlen_KV=ends)
    assert generate_varlen_parameters(q, q, q) == (None, None, 0, 0)
    with pytest.raises(TypeError, match="is_causal is None"):
        natten.attention(q, q, q, None)


def test_merge_attentions() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 2, 16), torch.randn(2, 9, 2, 16), torch.randn(2, 9, 2, 8)
    parts = [
        natten.attention(q, k[:, n:m], v[:, n:m], return_lse=True)
        for n, m in ((0, 2), (2, 6), (6, 9))
    ]
    outs, lses = ([part[n] for part in parts] for n in (0, 1))
    expected = natten.attention(q, k, v, return_lse=True)
    torch.testing.assert_close(natten.merge_attentions(outs, lses), expected)
    torch.testing.assert_close(natten.merge_attentions(outs, lses, False, False), expected)


class TestSettings:
    def test_memory(self) -> None:
        questions = {
            "default": natten.is_memory_usage_default,
            "strict": natten.is_memory_usage_strict,
            "unrestricted": natten.is_memory_usage_unrestricted,
        }
        assert natten.is_memory_usage_default()
        for name in reversed(questions):
            natten.set_memory_usage_preference(name)
            assert [n for n, question in questions.items() if question()] == [name]
            assert natten.get_memory_usage_preference() is MemoryUsagePreference[name.capitalize()]
        natten.set_memory_usage_preference("strict")
        natten.set_memory_usage_preference()
        assert natten.is_memory_usage_default()
        with pytest.raises(ValueError, match="pref is 'much'; allowed: 'default', 'strict'"):
            natten.set_memory_usage_preference("much")

    def test_flex(self) -> None:
        def allowed() -> tuple[bool, bool]:
            return natten.is_flex_compile_allowed(), natten.is_flex_compile_backprop_allowed()

        assert allowed() == (False, False)
        natten.allow_flex_compile_backprop()
        assert allowed() == (False, False)
        natten.allow_flex_compile()
        assert allowed() == (True, False)
        natten.allow_flex_compile_backprop()
        assert allowed() == (True, True)
        natten.disable_flex_compile_backprop()
        assert allowed() == (True, False)
        natten.allow_flex_compile(True, True)
        natten.disable_flex_compile()
        assert allowed() == (False, False)

    def test_deterministic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Deterministic mode, no key-value parallelism, torch's flag: each reaches the kernels."""
        asked: list[bool] = []
        for module, name in (
            (functional.neighborhood, "neighborhood_attention"),
            (functional.dense, "attention"),
        ):
            original = getattr(module, name)

            def spy(*tensors: Tensor, original: Any = original, **options: Any) -> Any:
                asked.append(options["deterministic"])
                return original(*tensors, **options)

            monkeypatch.setattr(module, name, spy)
        query, key, value, *_ = tensors(1)
        layer = natten.NeighborhoodAttention1D(32, 4, 3)

        def deterministic() -> bool:
            asked.clear()
            natten.na1d(query, key, value, 3)
            natten.attention(query, key, value)
            layer(torch.zeros(1, 9, 32))
            assert len(asked) == 3 and len(set(asked)) == 1
            return asked[0]

        torch.use_deterministic_algorithms(False)  # all tests run with it
        assert not deterministic() and not natten.are_deterministic_algorithms_enabled()
        natten.use_deterministic_algorithms()
        assert deterministic() and natten.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="not deterministic"):
            natten.use_kv_parallelism_in_fused_na()
        natten.use_deterministic_algorithms(False)
        natten.use_kv_parallelism_in_fused_na(False)
        assert deterministic() and not natten.is_kv_parallelism_in_fused_na_enabled()
        natten.use_kv_parallelism_in_fused_na()
        assert not deterministic() and natten.is_kv_parallelism_in_fused_na_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert deterministic()
        natten.use_kv_parallelism_in_fused_na(False)
        with pytest.warns(UserWarning, match="stays as it is"):
            natten.use_kv_parallelism_in_fused_na()
        assert not natten.is_kv_parallelism_in_fused_na_enabled()


def test_flags_and_configs() -> None:
    assert natten.HAS_LIBNATTEN is True
    q = torch.zeros(1, 5, 2, 16)
    for name in natten.__all__:
        if "configs_for" in name:
            assert getattr(natten, name)(q, q, q) == []


@every_rank
def test_module_attributes(rank: int) -> None:
    module = MODULES[rank](32, 4, 5, stride=2, dilation=1, is_causal=True, qk_scale=0.5)
    generic = natten.NeighborhoodAttentionGeneric(rank, 32, 4, 5, 2, 1, True, True, 0.5, 0.0)
    for made in (module, generic):
        assert (made.na_dim, made.expected_input_tensor_rank) == (rank, rank + 2)
        assert (made.embed_dim, made.num_heads, made.head_dim, made.scale) == (32, 4, 8, 0.5)
        assert (made.kernel_size, made.stride, made.dilation) == (
            (5,) * rank,
            (2,) * rank,
            (1,) * rank,
        )
        assert made.is_causal == (True,) * rank
        assert isinstance(made.proj_drop, torch.nn.Dropout) and made.proj_drop.p == 0.0
        assert set(made.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    with pytest.raises(ValueError, match="na_dim is 4"):
        natten.NeighborhoodAttentionGeneric(4, 32, 4, 5)


@every_rank
def test_module(rank: int) -> None:
    """NATTEN's layout of the projection, [3, heads, head_dim]; attributes may be set afterwards."""
    torch.manual_seed(0)
    module = MODULES[rank](32, 4, 3, qk_scale=0.4)
    x = torch.randn(2, *GRIDS[rank], 32)
    q, k, v = module.qkv(x).unflatten(-1, (3, 4, 8)).unbind(-3)

    def expected(**options: Any) -> Tensor:
        out = neighborhood_attention(q, k, v, **options)
        result: Tensor = module.proj(out.flatten(-2))
        return result

    torch.testing.assert_close(module(x), expected(window=3, scale=0.4))
    module.kernel_size, module.is_causal, module.scale = 2, True, 0.1
    torch.testing.assert_close(module(x), expected(window=2, causal=True, scale=0.1))
    copied = pickle.loads(pickle.dumps(module))
    assert copied.kernel_size == 2 and torch.equal(copied(x), module(x))
    for wrong in (torch.zeros(2, 32), torch.zeros(2, *GRIDS[rank], 16)):
        with pytest.raises(ValueError, match=f"{rank} grid axes and 32 channels"):
            module(wrong)


def test_compiled_and_pickled() -> None:
    query, key, value, *_ = tensors(2)
    assert pickle.loads(pickle.dumps(natten.na2d)) is natten.na2d

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, Any]:
        flat = (t.flatten(1, 2) for t in (query, key, value))
        return natten.na2d(query, key, value, 3), natten.attention(*flat, is_causal=True)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, value), run(query, key, value))
