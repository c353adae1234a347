"""Multi-head attention as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tileattn._common import checks
from tileattn.dense import attention
from tileattn.dense._checks import check_window, window_of
from tileattn.nn._sizes import check_free_heads, check_kv_heads
from tileattn.nn.resettable import ResettableModule


class Attention(ResettableModule):
    """Multi-head or grouped-query attention with its four projections.

    Args:
        embed_dim: channels C of the input and output.
        num_heads: query heads.
        num_kv_heads: key and value heads, a divisor of ``num_heads``; ``num_heads`` by default.
        head_dim: channels per head; ``embed_dim // num_heads`` by default.
        bias: whether the projections add a bias vector.
        causal, window, sink_tokens, scale, softcap: as in :func:`tileattn.attention`.
        learn_sinks: learn one attention sink per head, which a query can give its weight to
            instead of a key.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: head counts or channels that do not divide, options that
            :func:`tileattn.attention` does not take.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        causal: bool = False,
        window: tuple[int | None, int | None] | None = None,
        sink_tokens: int = 0,
        scale: float | None = None,
        softcap: float = 0.0,
        learn_sinks: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim, num_heads, self.head_dim = check_free_heads(embed_dim, num_heads, head_dim)
        num_kv_heads = check_kv_heads(num_heads, num_kv_heads)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.causal = checks.check_flag("causal", causal)
        left, right, self.sink_tokens = check_window(window, sink_tokens)
        self.window = None if window is None else window_of(left, right)
        self.scale = None if scale is None else checks.check_number("scale", scale)
        bias = checks.check_flag("bias", bias)
        learn_sinks = checks.check_flag("learn_sinks", learn_sinks)
        self.softcap = checks.check_number("softcap", softcap, minimum=0.0)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.q_proj = linear(embed_dim, num_heads * self.head_dim)
        self.k_proj = linear(embed_dim, num_kv_heads * self.head_dim)
        self.v_proj = linear(embed_dim, num_kv_heads * self.head_dim)
        self.out_proj = linear(num_heads * self.head_dim, embed_dim)
        sinks = torch.empty(num_heads, device=device, dtype=dtype) if learn_sinks else None
        self.sinks = nn.Parameter(sinks) if sinks is not None else None
        self._reset_own()

    def _reset_own(self) -> None:
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Attention of ``query`` over ``context``, or over itself.

        Args:
            query: [B, Sq, C].
            context: [B, Sk, C] that keys and values come from; ``query`` by default.
            bias, alibi_slopes, backend: as in :func:`tileattn.attention`.

        Returns:
            [B, Sq, C].
        """
        context = query if context is None else context
        q = self.q_proj(query).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(context).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(context).unflatten(-1, (self.num_kv_heads, self.head_dim))
        out = attention(
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            sink_tokens=self.sink_tokens,
            scale=self.scale,
            softcap=self.softcap,
            bias=bias,
            alibi_slopes=alibi_slopes,
            sinks=self.sinks,
            backend=backend,
        )
        result: Tensor = self.out_proj(out.flatten(-2))
        return result

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, causal={self.causal}, window={self.window}, "
            f"sink_tokens={self.sink_tokens}"
        )
