"""Fused attention kernels behind one friendly function per family.

    out = tileattn.attention(q, k, v, causal=True)     # [batch, tokens, heads, dim]

Kernels live in ``torch.ops.tileattn``; :mod:`tileattn.reference` says in plain PyTorch what each
of them means; :mod:`tileattn.capabilities` says what runs where.
"""

from __future__ import annotations

import importlib.metadata

import torch


def _require_torch(minimum: tuple[int, int] = (2, 11)) -> None:
    """ImportError in one sentence if torch is too old for the compiled kernels."""
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < minimum:
        raise ImportError(
            f"tileattn needs torch >= {minimum[0]}.{minimum[1]}, but torch {torch.__version__} is "
            "installed; upgrade it with `pip install --upgrade torch`."
        )


_require_torch()

from tileattn import (  # noqa: E402  (after the check, for a readable error)
    decays,
    feature_maps,
    nn,
    planner,
    reference,
)
from tileattn._paths import cmake_prefix  # noqa: E402
from tileattn.backend import use_backend  # noqa: E402
from tileattn.dense import attention, merge_attention  # noqa: E402
from tileattn.linear import linear_attention, segment_state  # noqa: E402
from tileattn.linear_decode import linear_attention_step  # noqa: E402
from tileattn.linear_variants import (  # noqa: E402
    agent_attention,
    clamped_linear_attention,
    prefix_linear_attention,
    softmax_rnn_attention,
)
from tileattn.local_linear import local_linear_attention, parallax_attention  # noqa: E402
from tileattn.neighborhood import (  # noqa: E402
    halo_attention,
    neighborhood_attention,
    windowed_attention,
)
from tileattn.neighborhood_unfused import neighborhood_av, neighborhood_qk  # noqa: E402
from tileattn.wersa import haar_filter, wersa_attention  # noqa: E402

try:
    __version__ = importlib.metadata.version("tileattn")
except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"

__all__ = [
    "__version__",
    "agent_attention",
    "attention",
    "clamped_linear_attention",
    "cmake_prefix",
    "decays",
    "feature_maps",
    "haar_filter",
    "halo_attention",
    "linear_attention",
    "linear_attention_step",
    "local_linear_attention",
    "merge_attention",
    "neighborhood_attention",
    "neighborhood_av",
    "neighborhood_qk",
    "nn",
    "parallax_attention",
    "planner",
    "prefix_linear_attention",
    "reference",
    "segment_state",
    "softmax_rnn_attention",
    "use_backend",
    "wersa_attention",
    "windowed_attention",
]
