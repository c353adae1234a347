"""Fused attention kernels behind one friendly function per family.

    out = tileattn.attention(q, k, v, causal=True)     # [batch, tokens, heads, dim]

Kernels live in ``torch.ops.tileattn``; :mod:`tileattn.reference` says in plain PyTorch what each
of them means; :mod:`tileattn.capabilities` says what runs where.
"""

from __future__ import annotations

import importlib.metadata
import sys

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

from tileattn import nn, planner, reference  # noqa: E402  (after the check: a readable error)
from tileattn._common.paths import cmake_prefix  # noqa: E402
from tileattn.backend import use_backend  # noqa: E402
from tileattn.dense import attention, merge_attention  # noqa: E402
from tileattn.linear import (  # noqa: E402
    decays,
    feature_maps,
    linear_attention,
    segment_state,
    wersa,
)
from tileattn.linear import decode as linear_decode  # noqa: E402
from tileattn.linear import local as local_linear  # noqa: E402
from tileattn.linear import variants as linear_variants  # noqa: E402
from tileattn.linear.decode import linear_attention_step  # noqa: E402
from tileattn.linear.local import local_linear_attention, parallax_attention  # noqa: E402
from tileattn.linear.variants import (  # noqa: E402
    agent_attention,
    clamped_linear_attention,
    prefix_linear_attention,
    softmax_rnn_attention,
)
from tileattn.linear.wersa import haar_filter, wersa_attention  # noqa: E402
from tileattn.neighborhood import (  # noqa: E402
    halo_attention,
    neighborhood_attention,
    windowed_attention,
)
from tileattn.neighborhood import unfused as neighborhood_unfused  # noqa: E402
from tileattn.neighborhood.unfused import neighborhood_av, neighborhood_qk  # noqa: E402

# Modules of a family that are imported from here, too: ``from tileattn.decays import retention``.
for _name, _module in {
    "decays": decays,
    "feature_maps": feature_maps,
    "linear_decode": linear_decode,
    "linear_variants": linear_variants,
    "local_linear": local_linear,
    "neighborhood_unfused": neighborhood_unfused,
    "wersa": wersa,
}.items():
    sys.modules[f"{__name__}.{_name}"] = _module

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
