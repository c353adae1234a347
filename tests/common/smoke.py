"""What any installation must do, without the project's sources.

``python -I tests/common/smoke.py`` imports tileattn, runs attention forward and backward on the CPU
kernels against the reference, the same compiled, and prints the versions it did so with.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import tileattn
from tileattn import _native, attention, capabilities, reference

OPTIONS = {"causal": True, "window": (24, 0), "sink_tokens": 2, "softcap": 20.0}


def run(kernel: object, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """out, lse and the three gradients of a loss in which both have a part."""
    assert callable(kernel)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out, lse = kernel(*leaves, **OPTIONS, return_lse=True)
    return out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), leaves)


def main() -> None:
    assert not capabilities.why_unavailable("cpu"), capabilities.why_unavailable("cpu")
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 70, 4, 40), torch.randn(2, 90, 2, 40), torch.randn(2, 90, 2, 24)
    expected = run(reference.attention, q.double(), k.double(), v.double())
    for kernel in (attention, torch.compile(attention, fullgraph=True, backend="aot_eager")):
        for actual, truth in zip(run(kernel, q, k, v), expected, strict=True):
            torch.testing.assert_close(actual.double(), truth, rtol=1e-5, atol=2e-5)
    with tileattn.use_backend("reference"):
        plain = attention(q, k, v, **OPTIONS)
    torch.testing.assert_close(plain.double(), expected[0], rtol=1e-5, atol=2e-5)
    version = ".".join(map(str, sys.version_info[:2]))
    kernels = _native.instruction_set()
    print(
        f"tileattn {tileattn.__version__} ({kernels}), torch {torch.__version__}, "
        f"Python {version}: ok"
    )


if __name__ == "__main__":
    main()
