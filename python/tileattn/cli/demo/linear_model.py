"""The language models of ``tileattn demo linear``: alike but for what mixes the tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tileattn.linear import linear_attention
from tileattn.nn import Attention, HedgehogFeatureMap, LightningAttention

HEADS, CHANNELS, LAYERS = 4, 128, 2


class Lightning(LightningAttention):
    """Without the state that the layer also returns."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Hedgehog(nn.Module):
    """Normalized linear attention of learned features."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.out_proj = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.features = HedgehogFeatureMap(HEADS, CHANNELS // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, HEADS, -1)).unbind(-3)
        mixed = linear_attention(q, k, v, feature_map=self.features, normalize=True)
        out: Tensor = self.out_proj(mixed.flatten(-2))
        return out


MIXERS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: Attention(CHANNELS, HEADS, causal=True, bias=False),
    "lightning": lambda: Lightning(CHANNELS, HEADS, num_layers=LAYERS),
    "hedgehog": Hedgehog,
}


class Layer(nn.Module):
    """Mixes tokens, then channels.

    Each channel is blended with that of the token before, which tells every mixer alike which
    tokens are neighbours.
    """

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.blend = nn.Parameter(torch.full((CHANNELS,), 0.5))
        self.token_norm, self.channel_norm = nn.RMSNorm(CHANNELS), nn.RMSNorm(CHANNELS)
        self.mixer = mixer
        self.channels = nn.Sequential(
            nn.Linear(CHANNELS, 4 * CHANNELS), nn.GELU(), nn.Linear(4 * CHANNELS, CHANNELS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to the same."""
        own = self.token_norm(x)
        before = F.pad(own, (0, 0, 1, 0))[:, :-1]
        x = x + self.mixer(torch.lerp(own, before, self.blend))
        result: Tensor = x + self.channels(self.channel_norm(x))
        return result


def build(mixer: str, seed: int) -> nn.Module:
    """From bytes [B, T] to logits [B, T, 256]."""
    torch.manual_seed(seed)
    layers = [Layer(MIXERS[mixer]()) for _ in range(LAYERS)]
    head = [nn.RMSNorm(CHANNELS), nn.Linear(CHANNELS, 256)]
    return nn.Sequential(nn.Embedding(256, CHANNELS), *layers, *head)
