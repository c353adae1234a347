"""nn.Attention against torch.nn.MultiheadAttention and against its own parts."""

from __future__ import annotations

import pytest
import torch

from tileattn.nn import Attention

BACKENDS = ["cpu", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_multihead_attention(backend: str) -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(64, 4), torch.nn.MultiheadAttention(64, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)])
        )
        theirs.in_proj_bias.copy_(
            torch.cat([p.bias for p in (ours.q_proj, ours.k_proj, ours.v_proj)])
        )
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, context = torch.randn(2, 9, 64), torch.randn(2, 13, 64)
    torch.testing.assert_close(ours(x, backend=backend), theirs(x, x, x, need_weights=False)[0])
    torch.testing.assert_close(
        ours(x, context, backend=backend), theirs(x, context, context, need_weights=False)[0]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_options_reach_the_kernel(backend: str) -> None:
    """A token's output does not change with tokens that it cannot see, and does with one it can."""
    torch.manual_seed(0)
    module = Attention(64, 4, num_kv_heads=2, head_dim=8, causal=True, window=(2, 0), sink_tokens=1)
    assert module.k_proj.out_features == 16
    x = torch.randn(1, 8, 64)
    out = module(x, backend=backend)
    for changed, same in ((6, True), (5, False), (3, False), (2, True), (0, False)):
        other = x.clone()
        other[:, changed] += 1
        assert torch.equal(module(other, backend=backend)[:, 5], out[:, 5]) == same, changed


def test_every_parameter_gets_a_gradient() -> None:
    module = Attention(32, 2, learn_sinks=True, softcap=5.0)
    module(torch.randn(2, 5, 32)).square().sum().backward()
    missing = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # Keys may be shifted by any constant: the softmax does not notice, save through sink and cap.
    assert missing == []
    assert module.sinks is not None and module.sinks.shape == (2,)


def test_half_precision_parameters() -> None:
    """Sinks in the module's dtype get their gradient in it."""
    module = Attention(32, 2, learn_sinks=True, dtype=torch.bfloat16)
    module(torch.randn(2, 5, 32, dtype=torch.bfloat16)).sum().backward()
    assert module.sinks is not None and module.sinks.grad is not None
    assert module.sinks.grad.dtype == torch.bfloat16 and module.sinks.grad.all()


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="num_kv_heads is 3"):
        Attention(64, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match="embed_dim is 66"):
        Attention(66, 4)
