"""Every argument, wrong in every way: a readable error before any kernel starts."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tileattn
from tileattn import attention, capabilities, use_backend
from tileattn.backend import requested_backend
from tileattn.dense import Options

BACKENDS = ["cpu", "reference"]


def good(**changes: Any) -> dict[str, Any]:
    """Arguments that work (two packed sequences if offsets are among the changes)."""
    q, k, v = torch.zeros(2, 5, 4, 16), torch.zeros(2, 7, 2, 16), torch.zeros(2, 7, 2, 8)
    return {"q": q, "k": k, "v": v} | changes


def packed(**changes: Any) -> dict[str, Any]:
    arguments = {name: tensor.flatten(0, 1) for name, tensor in good().items()}
    return arguments | {"cu_seqlens_q": int32(0, 4, 10), "cu_seqlens_k": int32(0, 9, 14)} | changes


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


META = "meta"
ZERO = torch.zeros

#: what is wrong -> (arguments, error, words that the message must hold)
BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "q is a list": (good(q=[1.0]), TypeError, ["q is", "list", "tensor"]),
    "k is None": (good(k=None), TypeError, ["k is", "None"]),
    "v is an array": (good(v=ZERO(2, 7, 2, 8).numpy()), TypeError, ["v is", "ndarray"]),
    "q rank 3": (good(q=ZERO(5, 4, 16)), ValueError, ["q is", "[5, 4, 16]", "[batch, tokens"]),
    "q rank 0": (good(q=ZERO(())), ValueError, ["q is", "[batch, tokens"]),
    "k rank 5": (good(k=ZERO(1, 2, 7, 2, 16)), ValueError, ["k is", "[batch, tokens"]),
    "v rank 2": (good(v=ZERO(2, 7)), ValueError, ["v is", "[2, 7]"]),
    "q int": (good(q=ZERO(2, 5, 4, 16).int()), TypeError, ["q is", "int32", "bfloat16"]),
    "q complex": (good(q=ZERO(2, 5, 4, 16).cfloat()), TypeError, ["q is", "complex64"]),
    "q bool": (good(q=ZERO(2, 5, 4, 16).bool()), TypeError, ["q is", "torch.bool"]),
    "k dtype": (good(k=ZERO(2, 7, 2, 16).half()), TypeError, ["k has dtype", "float16", "float32"]),
    "v dtype": (good(v=ZERO(2, 7, 2, 8).bfloat16()), TypeError, ["v has dtype", "bfloat16"]),
    "k device": (good(k=ZERO(2, 7, 2, 16, device=META)), ValueError, ["k is on meta", "cpu"]),
    "v device": (good(v=ZERO(2, 7, 2, 8, device=META)), ValueError, ["v is on meta", "cpu"]),
    "k batch": (good(k=ZERO(3, 7, 2, 16)), ValueError, ["k has batch 3", "2"]),
    "v batch": (good(v=ZERO(1, 7, 2, 8)), ValueError, ["v has batch 1", "2"]),
    "v tokens": (
        good(v=ZERO(2, 6, 2, 8)),
        ValueError,
        ["v has shape [2, 6, 2, 8]", "[2, 7, 2, 16]"],
    ),
    "v heads": (good(v=ZERO(2, 7, 4, 8)), ValueError, ["v has shape [2, 7, 4, 8]"]),
    "k head_dim": (good(k=ZERO(2, 7, 2, 24)), ValueError, ["k has head_dim 24", "16"]),
    "heads do not divide": (
        good(k=ZERO(2, 7, 3, 16), v=ZERO(2, 7, 3, 8)),
        ValueError,
        ["3 heads", "divide", "4"],
    ),
    "more key heads": (
        good(k=ZERO(2, 7, 8, 16), v=ZERO(2, 7, 8, 8)),
        ValueError,
        ["8 heads", "divide", "4"],
    ),
    "no key heads": (good(k=ZERO(2, 7, 0, 16), v=ZERO(2, 7, 0, 8)), ValueError, ["0 heads"]),
    "no channels": (good(q=ZERO(2, 5, 4, 0), k=ZERO(2, 7, 2, 0)), ValueError, ["head_dim 0"]),
    "no value channels": (good(v=ZERO(2, 7, 2, 0)), ValueError, ["v has head_dim 0"]),
    "causal is a number": (good(causal=1), TypeError, ["causal is 1", "True or False"]),
    "causal is None": (good(causal=None), TypeError, ["causal is None"]),
    "deterministic is text": (good(deterministic="yes"), TypeError, ["deterministic is 'yes'"]),
    "return_lse is text": (good(return_lse="no"), TypeError, ["return_lse is 'no'"]),
    "window is a number": (good(window=5), TypeError, ["window is 5", "(left, right)"]),
    "window of one": (good(window=(5,)), ValueError, ["window has 1 entries", "(left, right)"]),
    "window of three": (good(window=(1, 2, 3)), ValueError, ["window has 3 entries"]),
    "window left < 0": (good(window=(-1, 0)), ValueError, ["window: left is -1", ">= 0", "None"]),
    "window right < 0": (good(window=(0, -2)), ValueError, ["window: right is -2"]),
    "window of floats": (good(window=(1.5, 0)), TypeError, ["window: left is 1.5", "int"]),
    "window of bools": (good(window=(True, 0)), TypeError, ["window: left is True"]),
    "window is text": (good(window="ab"), TypeError, ["window is 'ab'"]),
    "sink_tokens < 0": (good(sink_tokens=-1), ValueError, ["sink_tokens is -1", ">= 0"]),
    "sink_tokens float": (good(sink_tokens=1.0), TypeError, ["sink_tokens is 1.0", "int"]),
    "sink_tokens None": (good(sink_tokens=None), TypeError, ["sink_tokens is None"]),
    "scale is text": (good(scale="1"), TypeError, ["scale is '1'", "number"]),
    "scale is a tensor": (good(scale=ZERO(1)), TypeError, ["scale is", "tensor"]),
    "scale is NaN": (good(scale=float("nan")), ValueError, ["scale is nan", "float32"]),
    "scale is infinite": (good(scale=float("inf")), ValueError, ["scale is inf", "float32"]),
    "softcap < 0": (good(softcap=-1.0), ValueError, ["softcap is -1.0", ">= 0"]),
    "scale too large": (good(scale=1e39), ValueError, ["scale is 1e+39", "float32"]),
    "scale too small": (good(scale=-1e-40), ValueError, ["scale is -1e-40", "float32"]),
    "softcap too small": (good(softcap=1e-40), ValueError, ["softcap is 1e-40", "float32"]),
    "softcap NaN": (good(softcap=float("nan")), ValueError, ["softcap is nan"]),
    "softcap None": (good(softcap=None), TypeError, ["softcap is None"]),
    "softcap is True": (good(softcap=True), TypeError, ["softcap is True"]),
    "alibi is a list": (good(alibi_slopes=[1.0] * 4), TypeError, ["alibi_slopes is", "tensor"]),
    "alibi dtype": (
        good(alibi_slopes=ZERO(4).half()),
        TypeError,
        ["alibi_slopes", "float16", "32"],
    ),
    "alibi heads": (good(alibi_slopes=ZERO(2)), ValueError, ["alibi_slopes has shape [2]", "[4]"]),
    "alibi batch": (
        good(alibi_slopes=ZERO(1, 4)),
        ValueError,
        ["alibi_slopes", "[1, 4]", "[2, 4]"],
    ),
    "alibi rank": (good(alibi_slopes=ZERO(2, 4, 1)), ValueError, ["alibi_slopes", "[2, 4, 1]"]),
    "alibi device": (good(alibi_slopes=ZERO(4, device=META)), ValueError, ["alibi_slopes is on"]),
    "alibi gradient": (
        good(alibi_slopes=ZERO(4, requires_grad=True)),
        ValueError,
        ["alibi_slopes", "not differentiated", "detach"],
    ),
    "bias is a number": (good(bias=1.0), TypeError, ["bias is 1.0", "tensor"]),
    "bias bool": (good(bias=ZERO(2, 1, 5, 7).bool()), TypeError, ["bias", "bool", "masked_fill"]),
    "bias dtype": (good(bias=ZERO(2, 1, 5, 7).half()), TypeError, ["bias", "float16", "float32"]),
    "bias rank": (good(bias=ZERO(5, 7)), ValueError, ["bias has shape [5, 7]", "[2, 4, 5, 7]"]),
    "bias batch": (good(bias=ZERO(3, 1, 5, 7)), ValueError, ["bias has shape [3, 1, 5, 7]"]),
    "bias heads": (good(bias=ZERO(2, 2, 5, 7)), ValueError, ["bias has shape [2, 2, 5, 7]"]),
    "bias queries": (good(bias=ZERO(2, 4, 4, 7)), ValueError, ["bias has shape [2, 4, 4, 7]"]),
    "bias keys": (good(bias=ZERO(2, 4, 5, 1)), ValueError, ["bias has shape [2, 4, 5, 1]"]),
    "bias device": (good(bias=ZERO(2, 4, 5, 7, device=META)), ValueError, ["bias is on meta"]),
    "bias packed": (
        packed(bias=ZERO(1, 1, 1, 14)),
        NotImplementedError,
        ["bias with cu_seqlens", "layout"],
    ),
    "sinks is a list": (good(sinks=[0.0] * 4), TypeError, ["sinks is", "tensor"]),
    "sinks dtype": (good(sinks=ZERO(4).int()), TypeError, ["sinks", "int32", "floating"]),
    "sinks heads": (good(sinks=ZERO(2)), ValueError, ["sinks has shape [2]", "[4]"]),
    "sinks rank": (good(sinks=ZERO(1, 4)), ValueError, ["sinks has shape [1, 4]"]),
    "sinks device": (good(sinks=ZERO(4, device=META)), ValueError, ["sinks is on meta"]),
    "packed without offsets": (
        {name: tensor for name, tensor in packed().items() if "cu" not in name},
        ValueError,
        ["q is", "[batch, tokens"],
    ),
    "offsets for rank 4": (
        good(cu_seqlens_q=int32(0, 2), cu_seqlens_k=int32(0, 2)),
        ValueError,
        ["q is", "[tokens, heads", "cu_seqlens"],
    ),
    "only cu_seqlens_q": (packed(cu_seqlens_k=None), ValueError, ["cu_seqlens_k is None", "both"]),
    "only cu_seqlens_k": (packed(cu_seqlens_q=None), ValueError, ["cu_seqlens_q is None", "both"]),
    "offsets are a list": (packed(cu_seqlens_q=[0, 4, 10]), TypeError, ["cu_seqlens_q is", "list"]),
    "offsets int64": (packed(cu_seqlens_q=int32(0, 4, 10).long()), TypeError, ["int64", "int32"]),
    "offsets float": (packed(cu_seqlens_k=ZERO(3)), TypeError, ["cu_seqlens_k", "float32"]),
    "offsets rank 2": (
        packed(cu_seqlens_q=ZERO(1, 3).int()),
        ValueError,
        ["cu_seqlens_q", "[1, 3]"],
    ),
    "no offsets": (
        packed(cu_seqlens_q=int32(), cu_seqlens_k=int32()),
        ValueError,
        ["cu_seqlens_q", "[sequences + 1]"],
    ),
    "offsets lengths": (packed(cu_seqlens_k=int32(0, 14)), ValueError, ["2 entries", "3"]),
    "offsets device": (
        packed(cu_seqlens_q=int32(0, 4, 10).to(META)),
        ValueError,
        ["cu_seqlens_q is on meta"],
    ),
    "offsets start": (packed(cu_seqlens_q=int32(1, 4, 10)), ValueError, ["starts at 1", "0"]),
    "offsets negative": (packed(cu_seqlens_q=int32(-1, 4, 10)), ValueError, ["starts at -1"]),
    "offsets fall": (
        packed(cu_seqlens_k=int32(0, 9, 8)),
        ValueError,
        ["cu_seqlens_k falls from 9 to 8", "entry 2"],
    ),
    "offsets past the end": (
        packed(cu_seqlens_k=int32(0, 9, 15)),
        ValueError,
        ["cu_seqlens_k ends at 15", "14 tokens"],
    ),
    "backend": (good(backend="gpu"), ValueError, ["backend is 'gpu'", "'reference'"]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD)
def test_message_names_argument_value_and_allowed(name: str, backend: str) -> None:
    arguments, error, words = BAD[name]
    with use_backend(backend), pytest.raises(error) as caught:
        attention(**arguments)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value), "a page of values"


@pytest.mark.parametrize("arguments", [good(), packed()], ids=["batch", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_unchanged_arguments_are_good(arguments: dict[str, Any], backend: str) -> None:
    """So that each case above fails for its own reason."""
    assert attention(**arguments, backend=backend).shape[-2:] == (4, 8)


def test_every_argument_is_tested() -> None:
    untested = {
        name
        for name in inspect.signature(attention).parameters
        if not any(name in case[0] for case in BAD.values())
    }
    assert untested == set()


def test_numbers_beyond_any_length_are_good() -> None:
    out = attention(**good(window=(10**30, 10**30), sink_tokens=10**30))
    assert torch.equal(out, attention(**good()))


def test_type_hints_follow_the_signature() -> None:
    keywords = set(inspect.signature(attention).parameters) - {"q", "k", "v", "return_lse"}
    assert set(Options.__annotations__) == keywords


@pytest.mark.parametrize("dim", [4, 12, 100, 264])
@pytest.mark.parametrize("name", ["q", "v"])
def test_head_dim_outside_the_kernels(name: str, dim: int) -> None:
    """The kernels refuse and name the way out, which works."""
    arguments = good()
    for key in ("q", "k") if name == "q" else ("v",):
        arguments[key] = torch.zeros(*arguments[key].shape[:-1], dim)
    with pytest.raises(ValueError, match=f"{name} has head_dim {dim}.*multiples of 8 up to 256"):
        attention(**arguments)
    assert attention(**arguments, backend="reference").shape == (2, 5, 4, dim if name == "v" else 8)


def test_float64_only_in_the_reference() -> None:
    arguments = {name: tensor.double() for name, tensor in good().items()}
    with pytest.raises(NotImplementedError, match="float64.*float32.*backend='reference'"):
        attention(**arguments)
    assert attention(**arguments, backend="reference").dtype == torch.float64


def test_backend_of_another_device() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda' but q is on device 'cpu'"):
        attention(**good(), backend="cuda")


def test_use_backend_nests_and_a_call_overrides() -> None:
    arguments = {name: tensor.double() for name, tensor in good().items()}  # reference only
    with use_backend("reference"):
        attention(**arguments)
        with use_backend("cpu"), pytest.raises(NotImplementedError):
            attention(**arguments)
        attention(**arguments)
        with pytest.raises(NotImplementedError):
            attention(**arguments, backend="auto")
    with pytest.raises(NotImplementedError):
        attention(**arguments)
    with pytest.raises(ValueError, match="backend is 'fast'"), use_backend("fast"):
        pass


def test_use_backend_is_per_thread() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(requested_backend(None)))
        thread.start()
        thread.join()
        assert requested_backend(None) == "reference"
    assert seen == ["auto"]


def test_table_gives_a_reason_for_every_gap() -> None:
    cells = list(capabilities.table())
    assert {cell.backend for cell in cells} == {"cuda", "cpu", "reference"}
    assert all(cell.supported == (cell.reason == "") for cell in cells)
    assert not capabilities.capability("cpu", "float64").supported
    assert not capabilities.capability("cuda", "float32").supported
    assert capabilities.capability("cpu", "float32").supported
    assert capabilities.capability("reference", "float64").supported


def test_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1")
    with pytest.raises(ImportError, match=r"needs torch >= 2\.11, but torch 2\.10\.1"):
        tileattn._require_torch()


def test_without_kernels_only_the_reference_runs(tmp_path: Path) -> None:
    """A copy of the package without its compiled library."""
    source = Path(tileattn.__file__).parent
    shutil.copytree(source, tmp_path / "tileattn", ignore=shutil.ignore_patterns("*.so", "__py*"))
    code = """
import torch, tileattn
q = torch.zeros(1, 2, 1, 8)
print(tileattn.attention(q, q, q, backend="reference").shape)
tileattn.attention(q, q, q)
"""
    # Without site, so that an editable install cannot put its library in.
    folders = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )
    assert "torch.Size([1, 2, 1, 8])" in done.stdout, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in ("NotImplementedError", "no compiled kernels", "backend='reference'"):
        assert word in last
