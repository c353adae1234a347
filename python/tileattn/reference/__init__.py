"""What the kernels compute, in plain PyTorch that reads like the definitions.

Nothing here uses the kernels' patterns: masks are dense and come straight from the definition, so
that a wrong pattern is caught. Any device, float64 included; memory grows with Sq * Sk.
"""

from tileattn.reference.dense import attention, attention_mask
from tileattn.reference.linear import linear_attention
from tileattn.reference.linear_variants import (
    agent_attention,
    clamped_linear_attention,
    local_linear_attention,
    parallax_attention,
    prefix_linear_attention,
    softmax_rnn_attention,
    wersa_attention,
)
from tileattn.reference.neighborhood import neighborhood_attention, neighborhood_mask

__all__ = [
    "agent_attention",
    "attention",
    "attention_mask",
    "clamped_linear_attention",
    "linear_attention",
    "local_linear_attention",
    "neighborhood_attention",
    "neighborhood_mask",
    "parallax_attention",
    "prefix_linear_attention",
    "softmax_rnn_attention",
    "wersa_attention",
]
