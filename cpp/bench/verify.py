"""The Python side of ``attention_bench --verify``: the same comparison as the project's tests."""

from __future__ import annotations

from typing import Any

import torch
from tolerance import GRADIENT_RATIO, OUT_RATIO, assert_as_exact
from torch import Tensor

from tileattn import reference

GRADIENTS = ("dq", "dk", "dv")
Tensors = dict[str, Tensor]


def _tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _run(inputs: Tensors, options: dict[str, Any], dtype: torch.dtype) -> Tensors:
    """out, lse and the gradients by the reference, every step in ``dtype``."""
    q, k, v = (inputs[name].to(dtype).requires_grad_() for name in "qkv")
    out, lse = reference.attention(q, k, v, **options, compute_dtype=dtype, return_lse=True)
    found = torch.autograd.grad(out, (q, k, v), inputs["dout"].to(dtype))
    results = {"out": out, "lse": lse, **dict(zip(GRADIENTS, found, strict=True))}
    return {name: result.detach() for name, result in results.items()}


def check(made: dict[str, Any]) -> str:
    """What is wrong with the results in ``made`` (raw memory of C++ arrays), or ""."""
    dtype = getattr(torch, made["dtype"])
    rows, keys = made["query_shape"], made["key_shape"]
    shapes = {"q": rows, "k": keys, "v": keys, "dout": rows, "out": rows}
    shapes |= {"dq": rows, "dk": keys, "dv": keys}
    tensors = {name: _tensor(made[name], dtype, shape) for name, shape in shapes.items()}
    tensors["lse"] = _tensor(made["lse"], torch.float32, rows[:-1])
    window = tuple(None if n < 0 else n for n in made["window"])
    options = {"causal": made["causal"], "window": window}

    exact = _run(tensors, options, torch.float64)
    peer = _run(tensors, options, dtype)
    peer["lse"] = _run(tensors, options, torch.float32)["lse"]  # in every kernel
    try:
        for name, truth in exact.items():
            ratio = GRADIENT_RATIO if name in GRADIENTS else OUT_RATIO
            assert_as_exact(name, tensors[name], truth, peer[name], ratio=ratio)
    except AssertionError as complaint:
        return str(complaint)
    return ""
