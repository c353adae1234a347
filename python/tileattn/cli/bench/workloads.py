"""What ``tileattn bench`` measures: problems and the functions that compete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tileattn import attention, reference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SDPA_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Function = Callable[[], object]


class Problem(Protocol):
    """A problem that competitors solve. Ratios compare with the fastest whose name begins with
    ``baseline``."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def baseline(self) -> str: ...
    @property
    def flops(self) -> float:
        """Useful FLOPs: of softmax attention two products forward and five backward, visible
        pairs only."""

    @property
    def bounds(self) -> dict[str, float]:
        """Bounds of the ratio by name; the first is that of the visible pairs."""

    def functions(self, device: str, flex: bool) -> dict[str, Function]:
        """The competitors by name, each on the layout it likes best; ours is the first."""


@dataclass(frozen=True)
class Workload:
    """Attention on standard normal inputs.

    queries: as many as keys if None; else neither ``causal`` nor a window goes with them.
    """

    length: int
    batch: int = 1
    heads: int = 8
    heads_kv: int = 8
    dim: int = 64
    dtype: str = "fp32"
    causal: bool = False
    window: tuple[int, int] | None = None
    backward: bool = False
    queries: int | None = None
    baseline: str = field(default="sdpa", init=False)

    @property
    def name(self) -> str:
        parts = [
            self.dtype,
            f"B{self.batch} {self._heads} S{self.length} D{self.dim}",
            "" if self.queries is None else f"Q{self.queries}",
            "causal" if self.causal else "",
            f"window {self.window}" if self.window else "",
            "fwd+bwd" if self.backward else "fwd",
        ]
        return " ".join(part for part in parts if part)

    @property
    def _heads(self) -> str:
        return f"H{self.heads}" + (f"/{self.heads_kv}" if self.heads_kv != self.heads else "")

    @property
    def visible_pairs(self) -> int:
        """Query-key pairs that the definition makes visible, in one head."""
        if self.queries is not None:
            return self.queries * self.length
        position = torch.arange(self.length)
        left, right = self.window or (self.length, self.length)
        last = position if self.causal else (position + right).clamp(max=self.length - 1)
        return int((last - (position - left).clamp(min=0) + 1).sum())

    @property
    def flops(self) -> float:
        products = 7 if self.backward else 2
        return 2 * products * self.batch * self.heads * self.dim * self.visible_pairs

    @property
    def bounds(self) -> dict[str, float]:
        return {}

    def functions(self, device: str, flex: bool) -> dict[str, Function]:
        generator = torch.Generator().manual_seed(0)

        def normal(heads: int, length: int = self.length) -> Tensor:
            drawn = torch.randn(self.batch, length, heads, self.dim, generator=generator)
            return drawn.to(device, DTYPES[self.dtype]).requires_grad_(self.backward)

        queries = self.length if self.queries is None else self.queries
        ours = [normal(self.heads, queries), normal(self.heads_kv), normal(self.heads_kv)]
        heads_first = [leaf(t.transpose(1, 2), self.backward) for t in ours]
        peers = self._sdpa(device)
        if flex:
            peers["flex"] = self._flex(device)
        return {
            "tileattn": call(self._tileattn(), ours, self.backward),
            **calls_that_work(peers, heads_first, self.backward),
        }

    def _tileattn(self) -> Callable[..., Tensor]:
        return lambda q, k, v: attention(q, k, v, causal=self.causal, window=self.window)

    def _sdpa(self, device: str) -> dict[str, Callable[..., Tensor]]:
        """torch's own: the one there is on the CPU, every backend on a GPU."""
        options: dict[str, Any] = {"enable_gqa": self.heads_kv != self.heads}
        if self.window is None:
            options["is_causal"] = self.causal
        else:
            options["attn_mask"] = reference.attention_mask(
                self.length, self.length, causal=self.causal, window=self.window, device=device
            )
        if device == "cpu":
            return {"sdpa": lambda q, k, v: scaled_dot_product_attention(q, k, v, **options)}

        def restricted(backend: SDPBackend) -> Callable[..., Tensor]:
            def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(q, k, v, **options)

            return forward

        return {f"sdpa {name}": restricted(backend) for name, backend in SDPA_BACKENDS.items()}

    def _flex(self, device: str) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch.compiler.reset()  # after eight problems it would no longer compile
        compiled = torch.compile(flex_attention)
        gqa = self.heads_kv != self.heads
        if self.window is None and not self.causal:
            return lambda q, k, v: compiled(q, k, v, enable_gqa=gqa)
        left, right = self.window or (self.length, self.length)
        right = 0 if self.causal else right

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j >= i - left) & (j <= i + right)

        blocks = create_block_mask(visible, None, None, self.length, self.length, device=device)
        return lambda q, k, v: compiled(q, k, v, block_mask=blocks, enable_gqa=gqa)


def leaf(tensor: Tensor, backward: bool) -> Tensor:
    """A contiguous input with the values of ``tensor``."""
    return tensor.detach().contiguous().requires_grad_(backward)


def call(forward: Callable[..., Tensor], inputs: list[Tensor], backward: bool) -> Function:
    """The forward on these inputs, or forward and backward."""
    if not backward:

        def run() -> object:
            with torch.no_grad():
                return forward(*inputs)

        return run
    gradient = torch.ones_like(forward(*inputs))
    return lambda: torch.autograd.grad(forward(*inputs), inputs, gradient)


def calls_that_work(
    forwards: dict[str, Callable[..., Tensor]], inputs: list[Tensor], backward: bool
) -> dict[str, Function]:
    """:func:`call` for those that torch has kernels for."""
    found = {}
    for name, forward in forwards.items():
        try:
            function = call(forward, inputs, backward)
            function()
        except RuntimeError:  # torch has no kernel of this kind for the problem
            continue
        found[name] = function
    return found


def matmul(dtype: str, device: str) -> tuple[Function, int]:
    """A large square product in torch, the practical ceiling of dense kernels, and its FLOPs."""
    size = 1536 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    return lambda: a @ b, 2 * size**3
