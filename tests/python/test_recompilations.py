"""torch.compile makes code for all values of an int option, not one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import tileattn
from tileattn import attention, neighborhood_attention
from tileattn.integrations.natten import na2d

VALUES = range(2, 14)

#: Calls with one option open; the tensor is [B, X, Y, H, D].
CALLS: dict[str, Callable[[Tensor, int], Any]] = {
    "window": lambda x, n: attention(*[x[:, 0]] * 3, window=(n, n)),
    "window, left": lambda x, n: attention(*[x[:, 0]] * 3, window=(n, 0)),
    "window, right": lambda x, n: attention(*[x[:, 0]] * 3, window=(None, n)),
    "window, reference": lambda x, n: attention(*[x[:, 0]] * 3, window=(n, 1), backend="reference"),
    "sink_tokens": lambda x, n: attention(*[x[:, 0]] * 3, window=(2, 0), sink_tokens=n),
    "neighborhood window": lambda x, n: neighborhood_attention(x, x, x, window=n),
    "neighborhood windows": lambda x, n: neighborhood_attention(x, x, x, window=(n, n + 1)),
    "stride": lambda x, n: neighborhood_attention(x, x, x, window=14, stride=n),
    "dilation": lambda x, n: neighborhood_attention(x, x, x, window=2, dilation=n),
    "kernel_size": lambda x, n: na2d(x, x, x, kernel_size=n),
    "block": lambda x, n: tileattn.halo_attention(x, x, x, block=n, halo=1),
    "halo": lambda x, n: tileattn.halo_attention(x, x, x, block=3, halo=n, border="zeros"),
    "block window": lambda x, n: tileattn.windowed_attention(x, x, x, window=n),
    "shift": lambda x, n: tileattn.windowed_attention(x, x, x, window=14, shift=n),
    "unfused window": lambda x, n: tileattn.neighborhood_qk(x[:, 0], x[:, 0], window=n),
    "iterations": lambda x, n: tileattn.local_linear_attention(*[x[:, 0]] * 3, iterations=n),
    "length": lambda x, n: attention(*[x[:, 0, :n]] * 3, causal=True),
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CALLS)
def test_two_compilations_for_all_values(name: str, training: bool) -> None:
    """One for the first value, one for every other; fullgraph raises beyond eight."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    x = torch.randn(1, 27, 27, 1, 8, requires_grad=training)
    for n in VALUES:
        results = [function(x, n) for function in (compiled, call)]
        torch.testing.assert_close(*results)
        if training:
            arriving = torch.randn_like(results[0])
            gradients = [torch.autograd.grad(r, x, arriving)[0] for r in results]
            torch.testing.assert_close(*gradients)
    assert counter.frame_count <= 2
