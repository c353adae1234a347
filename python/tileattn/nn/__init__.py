"""Modules around the functions of tileattn."""

from tileattn.nn.attention import Attention
from tileattn.nn.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)

__all__ = [
    "Attention",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
]
