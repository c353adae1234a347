"""The attention layer of TransNormerLLM and MiniMax-01."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tileattn._common import checks
from tileattn.linear import linear_attention
from tileattn.linear.decays import transnormer
from tileattn.linear.variants import takes_float32
from tileattn.nn._sizes import check_free_heads
from tileattn.nn.resettable import ResettableModule
from tileattn.reference.precision import exact_dtype, no_autocast


class LightningAttention(ResettableModule):
    """out_proj(sigmoid(gate(x)) * norm(linear attention of silu(qkv(x)) with constant decay)).

    Args:
        embed_dim: channels C of the input and output.
        num_heads: H.
        head_dim: channels per head; ``embed_dim // num_heads`` by default.
        log_decay: [H]; that of TransNormerLLM for this ``layer`` of ``num_layers`` by default. A
            constant: float32 whatever the module is cast to. It is in the state dict; one without
            it, of a model that computes its decays, leaves that of the constructor.
        layer, num_layers: place of the layer in the model, from 0.
        device, dtype: of the parameters.

    Float16 has too small a range for sums over all tokens: there the attention runs in float32, and
    on CUDA, whose kernels do not take it, in bfloat16.

    Raises:
        TypeError, ValueError: head counts or channels that do not divide, a log_decay that is no
            floating tensor [H].

    Source: Qin et al., Lightning Attention-2 (2024); MiniMax-01 (2025), section 2.
    """

    log_decay: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        log_decay: Tensor | None = None,
        layer: int = 0,
        num_layers: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim, num_heads, self.head_dim = check_free_heads(embed_dim, num_heads, head_dim)
        self.num_heads = num_heads
        self._initial_decay = _initial_decay(log_decay, num_heads, layer, num_layers)
        self.register_buffer(
            "log_decay", torch.empty(num_heads, device=device, dtype=torch.float32)
        )
        self._reset_own()
        inner = num_heads * self.head_dim

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        self.qkv_proj = linear(embed_dim, 3 * inner)
        self.gate_proj = linear(embed_dim, inner)
        self.norm = nn.RMSNorm(inner, eps=1e-6, device=device, dtype=dtype)
        self.out_proj = linear(inner, embed_dim)

    def _reset_own(self) -> None:
        if self._initial_decay.is_meta and not self.log_decay.is_meta:
            raise RuntimeError(
                "log_decay was given on meta, so its values are not known here; load a state dict "
                "that holds them"
            )
        self.log_decay.copy_(self._initial_decay)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LightningAttention:
        """The decay moves with the module but stays float32 when the module is cast."""
        exact = self.log_decay
        super()._apply(fn, recurse)
        if self.log_decay.dtype != exact.dtype:
            self.log_decay = exact.to(self.log_decay.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}log_decay"
        if key in state_dict:
            state_dict[key] = state_dict[key].float()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in missing_keys and not (self.log_decay.is_meta or self._initial_decay.is_meta):
            missing_keys.remove(key)
            self._reset_own()

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, backend: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens that follow those of an earlier call, if its state is given.

        Args:
            x: [B, T, C].
            state: [B, H, head_dim, head_dim] float32.
            backend: as in :func:`tileattn.linear_attention`.

        Returns:
            [B, T, C], and the state after the last token.
        """
        qkv = F.silu(self.qkv_proj(x)).unflatten(-1, (3, self.num_heads, self.head_dim))
        dtype = qkv.dtype
        if dtype == torch.float16:  # sums that only the norm bounds
            dtype = torch.float32 if takes_float32(qkv, backend) else torch.bfloat16
        q, k, v = qkv.to(dtype).unbind(-3)
        with no_autocast(x.device):
            out, last = linear_attention(
                q,
                k,
                v,
                log_decay=self.log_decay,
                scale=1.0,
                initial_state=state,
                return_final_state=True,
                backend=backend,
            )
            exact = exact_dtype(out.dtype)
            rows, weight = out.flatten(-2).to(exact), self.norm.weight.to(exact)
            rows = F.rms_norm(rows, self.norm.normalized_shape, weight, self.norm.eps)
        assert isinstance(last, Tensor)
        gated = torch.sigmoid(self.gate_proj(x)) * rows.to(qkv.dtype)
        result: Tensor = self.out_proj(gated)
        return result, last

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"


def _initial_decay(log_decay: Tensor | None, heads: int, layer: int, num_layers: int) -> Tensor:
    """float32 [H], with its values on the CPU also where modules are built on meta."""
    if log_decay is None:
        with torch.device("cpu"):
            return transnormer(heads, layer=layer, num_layers=num_layers)
    checks.require_tensor("log_decay", log_decay)
    if log_decay.dtype not in checks.FLOAT_DTYPES:
        raise TypeError(f"log_decay has dtype {log_decay.dtype}; it must be a floating dtype")
    if tuple(log_decay.shape) != (heads,):
        raise ValueError(
            f"log_decay has shape {list(log_decay.shape)}; it must be [heads] = [{heads}]"
        )
    where = "meta" if log_decay.is_meta else "cpu"
    return log_decay.detach().to(where, torch.float32, copy=True)
