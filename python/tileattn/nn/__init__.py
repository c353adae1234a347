"""Modules around the functions of tileattn."""

from tileattn.nn.attention import Attention

__all__ = ["Attention"]
