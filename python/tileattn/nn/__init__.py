"""Modules around the functions of tileattn."""

from tileattn.nn.agent import AgentAttention
from tileattn.nn.attention import Attention
from tileattn.nn.feature_maps import HedgehogFeatureMap, RandomReluFeatureMap
from tileattn.nn.lightning import LightningAttention
from tileattn.nn.linear_variants import (
    ClampedLinearAttention,
    LocalLinearAttention,
    ParallaxAttention,
    PrefixLinearAttention,
    SoftmaxRnnAttention,
    WersaAttention,
)
from tileattn.nn.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)

__all__ = [
    "AgentAttention",
    "Attention",
    "ClampedLinearAttention",
    "HedgehogFeatureMap",
    "LightningAttention",
    "LocalLinearAttention",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "ParallaxAttention",
    "PrefixLinearAttention",
    "RandomReluFeatureMap",
    "SoftmaxRnnAttention",
    "WersaAttention",
]
