"""Neighborhood attention as ``tileattn bench`` measures it, beside attention over all tokens and,
where it falls into blocks, beside attention over a batch of these (cut and copied before)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tileattn import attention, neighborhood_attention, planner
from tileattn.cli import grids
from tileattn.cli.bench.workloads import DTYPES, Function, call, calls_that_work, leaf

PLANNED_TILE = 64  # queries and keys of the tiles that the tile-wise bound is told for


@dataclass(frozen=True)
class GridWorkload:
    """Self-attention of a token grid on standard normal inputs; no axis is causal or dilated."""

    grid: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...] = ()  # 1 on each axis if empty
    heads: int = 8
    dim: int = 64
    dtype: str = "fp32"
    backward: bool = False
    baseline: str = field(default="dense", init=False)

    @property
    def name(self) -> str:
        stride = f" stride {grids.shape(self.stride)}" if self.stride else ""
        passes = "fwd+bwd" if self.backward else "fwd"
        return (
            f"{self.dtype} H{self.heads} D{self.dim} {grids.shape(self.grid)} "
            f"window {grids.shape(self.window)}{stride} {passes}"
        )

    @property
    def bounds(self) -> dict[str, float]:
        """By visible pairs, and by the tiles of the best shape."""
        size, stride = PLANNED_TILE, self.stride or 1
        ranked = planner.rank_tiles(
            self.grid, window=self.window, stride=stride, queries=size, keys=size
        )
        flops = planner.flop_bound(self.grid, window=self.window, stride=stride)
        return {"flop_bound": flops, "tile_bound": ranked[0].bound}

    @property
    def flops(self) -> float:
        products = 7 if self.backward else 2
        pairs = math.prod(self.grid) ** 2 / self.bounds["flop_bound"]
        return 2 * products * self.heads * self.dim * pairs

    def functions(self, device: str, flex: bool) -> dict[str, Function]:
        generator = torch.Generator().manual_seed(0)
        shape = (1, *self.grid, self.heads, self.dim)
        drawn = (torch.randn(shape, generator=generator) for _ in range(3))
        on_grid = [leaf(t.to(device, DTYPES[self.dtype]), self.backward) for t in drawn]
        in_a_row = [leaf(t.flatten(1, -3), self.backward) for t in on_grid]
        found = {
            "tileattn": call(self._tileattn(), on_grid, self.backward),
            "dense": call(lambda q, k, v: attention(q, k, v), in_a_row, self.backward),
        }
        if self._is_made_of_blocks:
            blocks = [leaf(self._blocks(t), self.backward) for t in on_grid]
            found["blocks"] = call(lambda q, k, v: attention(q, k, v), blocks, self.backward)
        # On the CPU, FlexAttention has no fused backward: it would hold all scores.
        if flex and not (device == "cpu" and self.backward):
            heads_first = [leaf(t.transpose(1, 2), self.backward) for t in in_a_row]
            found |= calls_that_work({"flex": self._flex(device)}, heads_first, self.backward)
        return found

    @property
    def _is_made_of_blocks(self) -> bool:
        """Whether it is dense attention within each window."""
        whole = all(n % w == 0 for n, w in zip(self.grid, self.window, strict=True))
        return whole and self.window == self.stride

    def _blocks(self, tensor: Tensor) -> Tensor:
        """[1, *grid, heads, dim] as a batch of windows, [windows, tokens of one, heads, dim]."""
        rank = len(self.grid)
        split = zip(self.grid, self.window, strict=True)
        tensor = tensor.detach().reshape(
            *(n for g, w in split for n in (g // w, w)), self.heads, -1
        )
        order = (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2), 2 * rank, 2 * rank + 1)
        return tensor.permute(order).flatten(0, rank - 1).flatten(1, rank)

    def _tileattn(self) -> Callable[..., Tensor]:
        window, stride = self.window, self.stride or 1
        return lambda q, k, v: neighborhood_attention(q, k, v, window=window, stride=stride)

    def _flex(self, device: str) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        axes = list(zip(self.grid, self.window, self.stride or (1,) * len(self.grid), strict=True))

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            seen = torch.ones_like(i, dtype=torch.bool)
            for length, w, s in reversed(axes):
                query, key = i % length, j % length
                i, j = i // length, j // length
                leader = (query // s * s + s // 2).clamp(max=length - 1)
                start = (leader - w // 2).clamp(0, length - w)
                seen = seen & (key >= start) & (key < start + w)
            return seen

        tokens = math.prod(self.grid)
        torch.compiler.reset()  # after eight problems it would no longer compile
        # Compiled, it does not hold the mask of all pairs.
        find_blocks = torch.compile(create_block_mask, dynamic=False)
        blocks = find_blocks(visible, None, None, tokens, tokens, device=device)
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda q, k, v: compiled(q, k, v, block_mask=blocks)
