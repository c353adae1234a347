"""Linear attention as ``tileattn bench`` measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tileattn import attention, decays, linear_attention
from tileattn.cli.bench.workloads import DTYPES, Function, call, leaf

CHUNK = 64  # tokens that meet one another as scores; FLOPs count those of this chunk


@dataclass(frozen=True)
class LinearWorkload:
    """Causal, with the constant decays of lightning attention, on standard normal inputs."""

    length: int
    baseline: str = "chunked"  # or "dense", our causal softmax attention; "tileattn": nothing else
    batch: int = 1
    heads: int = 8
    dim: int = 64
    dtype: str = "fp32"
    backward: bool = False

    @property
    def name(self) -> str:
        passes = "fwd+bwd" if self.backward else "fwd"
        shape = f"B{self.batch} H{self.heads} T{self.length} D{self.dim}"
        return f"{self.dtype} linear {shape} {passes}"

    @property
    def flops(self) -> float:
        """Products below the diagonal of a chunk, and those with states. Forward: scores and
        values, a state read and updated. Backward: dq as much, with the state computed again; dk
        and dv twice the first, two reads and one update of the state's gradient."""
        in_chunk, with_state = CHUNK * self.dim, 2 * self.dim**2
        forward = 2 * in_chunk + 2 * with_state
        backward = 6 * in_chunk + 5 * with_state
        tokens = self.batch * self.length * self.heads
        return float(tokens * (forward + backward * self.backward))

    @property
    def bounds(self) -> dict[str, float]:
        return {}

    def functions(self, device: str, flex: bool) -> dict[str, Function]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.length, self.heads, self.dim)
        drawn = (torch.randn(shape, generator=generator) for _ in range(3))
        inputs = [leaf(t.to(device, DTYPES[self.dtype]), self.backward) for t in drawn]
        decay = decays.lightning(self.heads).to(device)
        forwards: dict[str, Callable[..., Tensor]] = {
            "tileattn": lambda q, k, v: linear_attention(q, k, v, log_decay=decay),
            "chunked": lambda q, k, v: chunked(q, k, v, decay),
            "dense": lambda q, k, v: attention(q, k, v, causal=True),
        }
        chosen = ("tileattn", self.baseline)
        return {name: call(forwards[name], inputs, self.backward) for name in chosen}


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The chunked formula in PyTorch: batched products, and one loop that passes the states.

    q, k, v: [B, T, H, D], T a multiple of 64; log_decay: [H].
    """
    B, T, H, D = q.shape
    q, k, v = (x.transpose(1, 2).reshape(B, H, T // CHUNK, CHUNK, D) for x in (q, k, v))
    i = torch.arange(CHUNK, device=q.device)
    decay = log_decay[:, None, None]
    pairs = (decay * (i[:, None] - i)).exp().tril()[:, None].to(q.dtype)
    before = (decay * (i[:, None] + 1)).exp()[:, None].to(q.dtype)
    after = (decay * (CHUNK - 1 - i[:, None])).exp()[:, None].to(q.dtype)
    inside = ((q @ k.mT) * pairs) @ v
    added = (k * after).mT @ v
    total = (decay * CHUNK).exp()
    states, state = [], torch.zeros(B, H, D, D, device=q.device)
    for n in range(T // CHUNK):
        states.append(state.to(q.dtype))
        state = total * state + added[:, :, n]
    out: Tensor = inside + (q * before) @ torch.stack(states, 2)
    out = (out * D**-0.5).reshape(B, H, T, D)
    return out.transpose(1, 2)
