"""Modules around the functions of tileattn."""

from tileattn.nn.attention import Attention
from tileattn.nn.feature_maps import HedgehogFeatureMap, RandomReluFeatureMap
from tileattn.nn.lightning import LightningAttention
from tileattn.nn.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)

__all__ = [
    "Attention",
    "HedgehogFeatureMap",
    "LightningAttention",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "RandomReluFeatureMap",
]
