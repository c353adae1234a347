"""Linear attention in float16 where products, sums and weights on the way are out of its range.

What arrives and what is returned is not: a score of some hundred channels may be beyond 65504, a
key over the sum of thousands of weights below the smallest of its numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import Case, compare, run, truth
from test_linear_simulated import LONG, NARROW, NORMALIZE, TAYLOR2

from tileattn import linear_attention

KINDS = {
    "plain": Case(**LONG),
    "decay": Case(**LONG, decay="bth"),
    "normalized": Case(**LONG, decay="bth", options=NORMALIZE),
    "segments": Case(**LONG | {"len": 401}, options=NORMALIZE),
    "bidirectional": Case(**LONG | {"len": 401}, options={"causal": False} | NORMALIZE),
    "taylor2": Case(**LONG | NARROW, decay="bth", options=TAYLOR2 | NORMALIZE),
    "taylor2_segments": Case(**LONG | NARROW | {"len": 401}, options=TAYLOR2 | NORMALIZE),
}
#: Of q and k, of v, of the gradient of out.
GAINS = {
    "large scores": (60.0, 1.0, 1.0),
    "small scores": (1e-3, 1.0, 1.0),
    "large gradients": (1.0, 20.0, 500.0),
    "small weights": (10.0, 1.0, 1000.0),
}


@pytest.mark.parametrize(
    ("name", "gains"),
    # Scores of taylor2 are never small.
    [(n, g) for n in KINDS for g in GAINS if (n[:7], g) != ("taylor2", "small scores")],
)
def test_numbers_out_of_range(name: str, gains: str, linear_device: str) -> None:
    of_tokens, of_values, of_gradients = GAINS[gains]
    case, taylor2 = KINDS[name], name.startswith("taylor2")
    normalize = case.options.get("normalize", False)
    tensors = case.tensors(torch.float16)
    tensors["q"] *= of_tokens
    tensors["k"] *= of_tokens
    tensors["v"] *= of_values
    # The state is what tokens of this size would have left; out and the gradients are in range.
    of_state = of_tokens**2 if taylor2 else of_tokens
    tensors["s"] *= of_state * of_values
    arriving = {"out": of_gradients, "s": 1 / of_state, "z": 1 / of_state}
    options = case.options
    if normalize:
        tensors["z"] *= of_state
        arriving["out"] = max(of_gradients, of_tokens)
    else:
        options = options | {"scale": 0.1 / of_tokens**2 / of_values}
    tensors = {n: t.to(linear_device) for n, t in tensors.items()}
    arguments: dict[str, Any] = {"options": options, "arriving": arriving}
    actual = run(linear_attention, tensors, exact=False, **arguments)
    compare(actual, truth(tensors, **arguments), torch.float16)
