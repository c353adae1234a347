"""Runs the CUDA kernels on CPU tensors: the PTX simulator stands in for the CUDA runtime.

    with Simulator().kernels():
        tileattn.attention(q, k, v)        # q, k, v on the CPU

Inside, ``torch.ops.tileattn.attention_forward`` and ``attention_backward`` on CPU tensors call the
CUDA library instead of the CPU kernels, so that the whole Python layer is exercised with them.

The libraries are those of a build with TILEATTN_TESTS=ON. Every check of the simulator is on.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_bool, c_char, c_float, c_int, c_int8, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_BUILD = Path(__file__).parents[1] / "build/Release"
_CHECKS = {"PTXSIM_UNINIT": "1", "PTXSIM_RACES": "1", "PTXSIM_BOUNDS": "strict"}
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MESSAGE_SIZE = 512
_WORKSPACE_ALIGNMENT = 256


class _TensorRef(ctypes.Structure):
    _fields_ = [(n, c_int64) for n in ("data", "batch_stride", "token_stride", "head_stride")]


class _BiasRef(ctypes.Structure):
    _fields_ = [
        *((n, c_int64) for n in ("data", "batch_stride", "head_stride", "query_stride")),
        ("dtype", c_int8),
    ]


class _PatternSpec(ctypes.Structure):
    _fields_ = [("left", c_int), ("right", c_int), ("sink_tokens", c_int), ("causal", c_bool)]


class _Problem(ctypes.Structure):
    """tileattn::AttentionProblem; the sizes are compared with the library's at load time."""

    _fields_ = [
        ("dtype", c_int8),
        *((n, c_int) for n in ("batch", "heads_q", "heads_kv", "dim", "dim_v", "len_q", "len_k")),
        *((n, c_void_p) for n in ("cu_seqlens_q", "cu_seqlens_k")),
        *((n, _TensorRef) for n in ("q", "k", "v")),
        ("pattern", _PatternSpec),
        ("scale", c_float),
        ("softcap", c_float),
        ("alibi_slopes", c_void_p),
        ("alibi_batch_stride", c_int64),
        ("bias", _BiasRef),
        ("sinks", c_void_p),
    ]


class _Forward(_Problem):
    _fields_ = [("out", _TensorRef), ("lse", c_void_p)]


class _Backward(_Problem):
    _fields_ = [
        *((n, _TensorRef) for n in ("out", "dout")),
        *((n, c_void_p) for n in ("lse", "dlse")),
        *((n, _TensorRef) for n in ("dq", "dk", "dv")),
        ("dbias", _BiasRef),
        ("delta", c_void_p),
        ("deterministic", c_bool),
    ]


def _strides(tensor: Tensor) -> list[int]:
    """Strides in elements; 0 where a dimension is never stepped along."""
    return [0 if n <= 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]


def _readable(tensor: Tensor) -> Tensor:
    """The tensor, copied unless its rows can be read as 16-byte vectors."""
    *outer, _ = _strides(tensor)
    dense = tensor.stride(-1) == 1 or tensor.shape[-1] <= 1
    aligned = all(s * tensor.element_size() % 16 == 0 for s in outer)
    if dense and aligned and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _ref(tensor: Tensor) -> _TensorRef:
    batch, token, head = ([0] * (4 - tensor.dim()) + _strides(tensor))[:3]
    return _TensorRef(tensor.data_ptr(), batch, token, head)


def _bias_ref(bias: Tensor | None) -> _BiasRef:
    if bias is None:
        return _BiasRef()
    return _BiasRef(bias.data_ptr(), *_strides(bias)[:3], _DTYPES[bias.dtype])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Simulator:
    """The CUDA library on the simulator; raises OSError where one of them does not load."""

    def __init__(self) -> None:
        # Loaded first and globally, the simulator is what the library finds as libcudart.
        os.environ.update(_CHECKS)
        self._runtime = ctypes.CDLL(str(_BUILD / "ptxsim/libptxsim.so"), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(_BUILD / "cuda/libtileattn_cuda_sim.so"))
        for text in ("ptxsim_last_report", "ptxsim_stats_json"):
            getattr(self._runtime, text).restype = ctypes.c_char_p
        self.calls = 0
        for direction, struct in (("forward", _Forward), ("backward", _Backward)):
            size = getattr(self._library, f"tileattn_sim_{direction}_size")
            size.restype = c_size_t
            if size() != ctypes.sizeof(struct):
                raise OSError(f"simulator.py mirrors another {struct.__name__} than the library's")

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Inside, the raw operators on CPU tensors run the CUDA kernels."""
        with _Redirect(self):
            yield

    @contextmanager
    def configured(self, **variables: object) -> Iterator[None]:
        """Inside, PTXSIM_<NAME> is what is given as ``name``: seed, async_, capability,
        multiprocessors, ..."""
        names = {f"PTXSIM_{name.strip('_').upper()}": value for name, value in variables.items()}
        before = {name: os.environ.pop(name) for name in names if name in os.environ}
        os.environ.update({name: str(value) for name, value in names.items()})
        self._runtime.ptxsim_reload_options()
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
            os.environ.update(before)
            self._runtime.ptxsim_reload_options()

    def counters(self) -> list[dict[str, Any]]:
        """What each kernel has done since the last call, inside ``configured(stats="collect")``."""
        counted: list[dict[str, Any]] = json.loads(self._runtime.ptxsim_stats_json())
        self._runtime.ptxsim_reset_stats()
        return counted

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """As ``torch.ops.tileattn.attention_forward``; results outside of sequences stay as set."""
        self.calls += 1
        problem, tensors = _describe(_Forward, arguments)
        q, v = arguments[0], arguments[2]
        out = q.new_full((*q.shape[:-1], v.shape[-1]), 0.0 if q.dim() == 3 else torch.nan)
        lse = torch.full(q.shape[:-1], -torch.inf if q.dim() == 3 else torch.nan)
        problem.out, problem.lse = _ref(out), lse.data_ptr()
        if out.numel():
            self._run("forward", problem, [*tensors, out, lse])
        return out, lse

    def backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """As ``torch.ops.tileattn.attention_backward``."""
        self.calls += 1
        dout, dlse, q, k, v, out, lse, bias, *rest = arguments
        deterministic, bias_grad = rest[-2:]
        problem, tensors = _describe(_Backward, (q, k, v, bias, *rest[:-1]))
        out, dout, lse = _readable(out), _readable(dout), lse.contiguous()
        dlse = None if dlse is None else dlse.contiguous()
        fill = 0.0 if q.dim() == 3 else torch.nan
        dq, dk, dv = (torch.full(t.shape, fill, dtype=t.dtype) for t in (q, k, v))
        delta, dbias = torch.full(q.shape[:-1], fill), torch.zeros(0)
        if bias is not None and bias_grad:
            kept = (q.shape[0], q.shape[2]) if deterministic else bias.shape[:2]
            dbias = torch.zeros(*kept, *bias.shape[2:])
            problem.dbias = _bias_ref(dbias)
        problem.out, problem.dout = _ref(out), _ref(dout)
        problem.lse, problem.dlse, problem.delta = map(_pointer, (lse, dlse, delta))
        problem.dq, problem.dk, problem.dv = _ref(dq), _ref(dk), _ref(dv)
        problem.deterministic = deterministic
        if q.numel() or k.numel():
            used = [*tensors, out, dout, lse, dlse, dq, dk, dv, dbias, delta]
            self._run("backward", problem, used)
        return dq, dk, dv, dbias, delta

    def _run(self, direction: str, problem: _Problem, tensors: list[Tensor | None]) -> None:
        """Calls the library with a poisoned workspace; only ``tensors`` may be accessed."""
        size = c_size_t()
        self._call(f"{direction}_workspace", byref(problem), byref(size))
        memory = torch.full((size.value + _WORKSPACE_ALIGNMENT,), 0xFF, dtype=torch.uint8)
        workspace = -(-memory.data_ptr() // _WORKSPACE_ALIGNMENT) * _WORKSPACE_ALIGNMENT
        ranges = {workspace: size.value}
        for tensor in tensors:
            if tensor is not None:
                storage = tensor.untyped_storage()
                ranges[storage.data_ptr()] = storage.nbytes()
        ranges = {start: count for start, count in ranges.items() if count}
        for start, count in ranges.items():
            self._runtime.ptxsim_register_range(c_void_p(start), c_size_t(count))
        try:
            self._call(direction, byref(problem), c_void_p(workspace))
        finally:
            for start in ranges:
                self._runtime.ptxsim_unregister_range(c_void_p(start))

    def _call(self, name: str, *arguments: Any) -> None:
        message = (c_char * _MESSAGE_SIZE)()
        if getattr(self._library, f"tileattn_sim_{name}")(*arguments, message):
            self._runtime.cudaDeviceReset()  # else the error would stick to later launches
            report = self._runtime.ptxsim_last_report().decode()
            raise RuntimeError(f"{message.value.decode()}\n{report}".rstrip())


def _describe(struct: type[_Problem], arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """The problem of a forward's arguments, and the tensors that it points into."""
    *given, scale, softcap, left, right, sink_tokens, causal, _ = arguments
    q, k, v = map(_readable, given[:3])
    bias = given[3]
    if bias is not None and bias.stride(-1) != 1:
        bias = bias.contiguous()
    slopes, sinks, cu_q, cu_k = (None if t is None else t.contiguous() for t in given[4:])
    problem = struct(
        dtype=_DTYPES[q.dtype],
        batch=q.shape[0] if cu_q is None else len(cu_q) - 1,
        heads_q=q.shape[-2],
        heads_kv=k.shape[-2],
        dim=q.shape[-1],
        dim_v=v.shape[-1],
        len_q=q.shape[-3],
        len_k=k.shape[-3],
        cu_seqlens_q=_pointer(cu_q),
        cu_seqlens_k=_pointer(cu_k),
        q=_ref(q),
        k=_ref(k),
        v=_ref(v),
        pattern=_PatternSpec(*(min(n, 1 << 30) for n in (left, right, sink_tokens)), causal),
        scale=scale,
        softcap=softcap,
        alibi_slopes=_pointer(slopes),
        alibi_batch_stride=q.shape[-2] if slopes is not None and slopes.dim() == 2 else 0,
        bias=_bias_ref(bias),
        sinks=_pointer(sinks),
    )
    return problem, [q, k, v, bias, slopes, sinks, cu_q, cu_k]


class _Redirect(TorchDispatchMode):
    """Hands the raw operators to the simulator; everything else goes its way."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        operators = torch.ops.tileattn
        self._kernels = {
            operators.attention_forward.default: simulator.forward,
            operators.attention_backward.default: simulator.backward,
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kernel = self._kernels.get(func)
        if kernel is None:
            return func(*args, **(kwargs or {}))
        assert not kwargs and len(args) == len(func._schema.arguments)
        return kernel(*args)
