"""Channels and heads of the modules."""

from __future__ import annotations

from tileattn._common.checks import check_int


def check_heads(embed_dim: int, num_heads: int) -> tuple[int, int, int]:
    """Returns (embed_dim, num_heads, head_dim) with the heads dividing the channels."""
    embed_dim, num_heads = check_int("embed_dim", embed_dim), check_int("num_heads", num_heads)
    if embed_dim % num_heads != 0:
        raise ValueError(
            f"embed_dim is {embed_dim}; it must be a multiple of num_heads, {num_heads}"
        )
    return embed_dim, num_heads, embed_dim // num_heads


def check_free_heads(embed_dim: int, num_heads: int, head_dim: int | None) -> tuple[int, int, int]:
    """The same where head_dim may be given: then it need not be a part of the channels."""
    if head_dim is None:
        return check_heads(embed_dim, num_heads)
    return (
        check_int("embed_dim", embed_dim),
        check_int("num_heads", num_heads),
        check_int("head_dim", head_dim),
    )


def check_kv_heads(num_heads: int, num_kv_heads: int | None) -> int:
    """Key and value heads, a divisor of the query heads; as many by default."""
    if num_kv_heads is None:
        return num_heads
    num_kv_heads = check_int("num_kv_heads", num_kv_heads)
    if num_heads % num_kv_heads != 0:
        raise ValueError(
            f"num_kv_heads is {num_kv_heads}; it must be a divisor of num_heads, {num_heads}"
        )
    return num_kv_heads
