"""What ``tileattn bench`` measures: problems, the functions that compete, presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tileattn import attention, reference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Function = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """Self-attention of equal heads on standard normal inputs."""

    length: int
    batch: int = 1
    heads: int = 8
    dim: int = 64
    dtype: str = "fp32"
    causal: bool = False
    window: tuple[int, int] | None = None
    backward: bool = False

    @property
    def name(self) -> str:
        parts = [
            self.dtype,
            f"B{self.batch} H{self.heads} S{self.length} D{self.dim}",
            "causal" if self.causal else "",
            f"window {self.window}" if self.window else "",
            "fwd+bwd" if self.backward else "fwd",
        ]
        return " ".join(part for part in parts if part)

    @property
    def visible_pairs(self) -> int:
        """Query-key pairs that the definition makes visible, in one head."""
        position = torch.arange(self.length)
        left, right = self.window or (self.length, self.length)
        last = position if self.causal else (position + right).clamp(max=self.length - 1)
        return int((last - (position - left).clamp(min=0) + 1).sum())

    @property
    def flops(self) -> int:
        """Useful FLOPs: two products forward and five backward, visible pairs only."""
        products = 7 if self.backward else 2
        return 2 * products * self.batch * self.heads * self.dim * self.visible_pairs

    def functions(self, device: str, flex: bool) -> dict[str, Function]:
        """The competitors by name, each on the layout it likes best."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.length, self.heads, self.dim)
        ours = [
            torch.randn(shape, generator=generator)
            .to(device, DTYPES[self.dtype])
            .requires_grad_(self.backward)
            for _ in range(3)
        ]
        heads_first = [
            t.detach().transpose(1, 2).contiguous().requires_grad_(self.backward) for t in ours
        ]
        found = {"tileattn": self._with_backward(self._tileattn(), ours)}
        found["sdpa"] = self._with_backward(self._sdpa(device), heads_first)
        if flex:
            found["flex"] = self._with_backward(self._flex(device), heads_first)
        return found

    def _with_backward(self, forward: Callable[..., Tensor], inputs: list[Tensor]) -> Function:
        if not self.backward:

            def run() -> object:
                with torch.no_grad():
                    return forward(*inputs)

            return run
        gradient = torch.ones_like(forward(*inputs))
        return lambda: torch.autograd.grad(forward(*inputs), inputs, gradient)

    def _tileattn(self) -> Callable[..., Tensor]:
        return lambda q, k, v: attention(q, k, v, causal=self.causal, window=self.window)

    def _sdpa(self, device: str) -> Callable[..., Tensor]:
        if self.window is None:
            return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        mask = reference.attention_mask(
            self.length, self.length, causal=self.causal, window=self.window, device=device
        )
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _flex(self, device: str) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled = torch.compile(flex_attention)
        if self.window is None and not self.causal:
            return lambda q, k, v: compiled(q, k, v)
        left, right = self.window or (self.length, self.length)
        right = 0 if self.causal else right

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j >= i - left) & (j <= i + right)

        blocks = create_block_mask(visible, None, None, self.length, self.length, device=device)
        return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


PRESETS: dict[str, tuple[Workload, ...]] = {
    "cpu-dense": (
        Workload(1024),
        Workload(4096),
        Workload(1024, backward=True),
        Workload(4096, backward=True),
        Workload(4096, causal=True),
        Workload(4096, causal=True, backward=True),
        Workload(8192),
        Workload(8192, window=(256, 0)),
        Workload(1024, dtype="bf16"),
        Workload(4096, dtype="bf16"),
        Workload(4096, dtype="bf16", backward=True),
    ),
    "cpu-quick": (Workload(512), Workload(512, backward=True), Workload(1024, causal=True)),
    "cuda-dense": tuple(
        Workload(length, 4, 16, 128, dtype, causal, None, backward)
        for dtype in ("fp16", "bf16")
        for length in (2048, 8192)
        for causal in (False, True)
        for backward in (False, True)
    ),
}
