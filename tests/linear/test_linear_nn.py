"""Modules of linear attention and of the operators composed of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tileattn
import tileattn.nn as modules
from tileattn import decays
from tileattn.nn import LightningAttention

SELF_ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "clamped": lambda: modules.ClampedLinearAttention(32, 4, minimum=1.0),
    "local_linear": lambda: modules.LocalLinearAttention(32, 4, iterations=8),
    "parallax": lambda: modules.ParallaxAttention(32, 4),
    "softmax_rnn": lambda: modules.SoftmaxRnnAttention(32, 4),
    "wersa": lambda: modules.WersaAttention(32, 4, features=20),
}


@pytest.mark.parametrize("name", SELF_ATTENTION)
def test_trains_compiles_and_casts(name: str) -> None:
    """Every parameter gets a finite gradient that is not 0; compiled, all is the same."""
    torch.manual_seed(0)
    module, x = SELF_ATTENTION[name](), torch.randn(2, 11, 32)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (module, compiled):
        out = run(x)
        assert out.shape == x.shape
        found = torch.autograd.grad(out.square().sum(), list(module.parameters()))
        assert all(bool(g.isfinite().all()) and bool(g.any()) for g in found)
        gradients.append([out, *found])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_causal_modules_do_not_look_ahead() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 11, 32)
    changed = torch.cat([x[:, :7], torch.randn(2, 4, 32)], 1)
    for name in ("local_linear", "parallax", "softmax_rnn"):
        module = SELF_ATTENTION[name]()
        torch.testing.assert_close(module(changed)[:, :7], module(x)[:, :7])


def test_parallax_starts_as_softmax_attention() -> None:
    module, x = modules.ParallaxAttention(32, 4), torch.randn(2, 11, 32)
    expected = module.merge(tileattn.attention(*module.project(x), causal=True))
    torch.testing.assert_close(module(x), expected)


def test_prefix() -> None:
    """Every token sees every token of the prefix, and no later one of its own."""
    torch.manual_seed(0)
    module = modules.PrefixLinearAttention(32, 4)
    x, prefix = torch.randn(2, 9, 32), torch.randn(2, 5, 32, requires_grad=True)
    out = module(x, prefix)
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), prefix)
    assert bool(gradient.any(-1).all())
    torch.testing.assert_close(module(x[:, :4], prefix), out[:, :4])
    torch.testing.assert_close(module(x, prefix, backend="reference"), out)


def test_agent() -> None:
    torch.manual_seed(0)
    module, x = modules.AgentAttention(32, 4, image=(6, 8), agents=(3, 2)), torch.randn(2, 6, 8, 32)
    out = module(x)
    torch.testing.assert_close(module(x, backend="reference"), out)
    found = torch.autograd.grad(out.square().sum(), list(module.parameters()))
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in found)
    with pytest.raises(ValueError, match=r"x has shape \[2, 5, 8, 32\]"):
        module(x[:, :5])
    with pytest.raises(ValueError, match=r"agents are \(3, 9\)"):
        modules.AgentAttention(32, 4, image=(6, 8), agents=(3, 9))


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="embed_dim is 30"):
        modules.ParallaxAttention(30, 4)
    with pytest.raises(ValueError, match="levels is 0"):
        modules.WersaAttention(32, 4, levels=0, features=8)


def lightning(**options: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return LightningAttention(32, 4, **options)


def test_lightning_layer_continues_from_its_state() -> None:
    module, x = lightning(layer=1, num_layers=3), torch.randn(2, 70, 32)
    whole, last = module(x)
    first, state = module(x[:, :50])
    second, state = module(x[:, 50:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(module(x, backend="reference")[0], whole)
    low = lightning(layer=1, num_layers=3).bfloat16()  # type: ignore[attr-defined]
    assert torch.equal(low.log_decay, module.log_decay)  # type: ignore[attr-defined]
    assert low(x.bfloat16())[0].dtype == torch.bfloat16


def test_lightning_layer_trains_and_compiles() -> None:
    module, x = lightning(log_decay=decays.retention(4)), torch.randn(2, 9, 32)
    module(x)[0].square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())  # type: ignore
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], module(x)[0])
    with pytest.raises(ValueError, match="embed_dim is 30"):
        LightningAttention(30, 4)
    with pytest.raises(ValueError, match=r"log_decay has shape \[3\]"):
        lightning(log_decay=decays.retention(3))
