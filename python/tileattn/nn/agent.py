"""Agent attention over an image, with its biases, as a module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tileattn.linear.variants import agent_attention
from tileattn.neighborhood._checks import PerAxis, per_axis
from tileattn.nn.linear_variants import SelfAttentionModule
from tileattn.reference.precision import exact_dtype


class _BiasTables(nn.ParameterList):
    """A coarse map, one entry per row and one per column, for each head and agent."""

    def __init__(
        self,
        heads: int,
        image: tuple[int, int],
        agents: tuple[int, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        shapes = (agents, (image[0], 1), (1, image[1]))
        count = agents[0] * agents[1]
        super().__init__(
            torch.empty(heads, count, *shape, device=device, dtype=dtype) for shape in shapes
        )
        self.image = image
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self:
            nn.init.trunc_normal_(table, std=0.02)

    def bias(self) -> Tensor:
        """[H, agents, pixels], in float32: the gradients of tables are sums over pixels."""
        coarse, rows, columns = (table.to(exact_dtype(table.dtype)) for table in self)
        enlarged = F.interpolate(coarse, size=self.image, mode="bilinear")
        bias: Tensor = (enlarged + rows + columns).flatten(2)
        return bias


class AgentAttention(SelfAttentionModule):
    """Agents pooled from the queries of an image stand between its queries and keys.

    Both softmaxes have a learned bias per head, agent and pixel, the sum of a coarse map that is
    enlarged to the image, one per row and one per column. A depthwise convolution of the values is
    added to the result.

    Args:
        embed_dim, num_heads, device, dtype: C, H, those of the parameters.
        image: (height, width) in tokens; one int for both.
        agents: (rows, columns) of agents; 7 x 7 in the paper.

    Raises:
        TypeError, ValueError: channels that the heads do not divide, or more agents than tokens on
            an axis.

    Source: Han et al., Agent Attention (2023), section 4.2.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        image: PerAxis,
        agents: PerAxis = (7, 7),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)
        height, width = per_axis("image", image, 2, 1)
        rows, columns = per_axis("agents", agents, 2, 1)
        self.image, self.agents = (height, width), (rows, columns)
        if rows > height or columns > width:
            raise ValueError(
                f"agents are {self.agents}; each must be from 1 to that of image, {self.image}"
            )
        self.gather_tables, self.spread_tables = (
            _BiasTables(self.num_heads, self.image, self.agents, device, dtype) for _ in range(2)
        )
        self.local = nn.Conv2d(
            self.embed_dim,
            self.embed_dim,
            3,
            padding=1,
            groups=self.embed_dim,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor, *, backend: str | None = None) -> Tensor:
        """[B, height, width, C] to the same; ``backend`` as in :func:`tileattn.attention`."""
        if tuple(x.shape[1:-1]) != self.image:
            raise ValueError(
                f"x has shape {list(x.shape)}; it must be [batch, {self.image[0]}, "
                f"{self.image[1]}, channels]"
            )
        q, k, v = self.project(x)
        images = [t.flatten(-2).movedim(-1, 1) for t in (q, v)]  # [B, C, height, width]
        pooled = F.adaptive_avg_pool2d(images[0], self.agents).flatten(2).mT
        out = agent_attention(
            q.flatten(1, 2),
            k.flatten(1, 2),
            v.flatten(1, 2),
            pooled.unflatten(-1, (self.num_heads, self.head_dim)),
            gather_bias=self.gather_tables.bias().unsqueeze(0),
            spread_bias=self.spread_tables.bias().mT.unsqueeze(0),
            backend=backend,
        )
        local = self.local(images[1]).movedim(1, -1)
        result: Tensor = self.out_proj(out.flatten(-2).unflatten(1, self.image) + local)
        return result
