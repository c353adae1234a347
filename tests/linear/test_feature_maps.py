"""Feature maps by their definitions, alone and in front of linear attention."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tileattn import feature_maps, linear_attention
from tileattn.nn import HedgehogFeatureMap, RandomReluFeatureMap

close = torch.testing.assert_close


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_by_hand() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    e = math.exp(-1)
    close(feature_maps.elu1(x), torch.tensor([e, 1.0, 3.0], dtype=torch.float64))
    close(feature_maps.relu(x), torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    two = torch.tensor([2.0], dtype=torch.float64)
    close(feature_maps.taylor2(two), torch.tensor([1, 2, 4 / math.sqrt(2)], dtype=torch.float64))


def test_taylor2_is_the_series_of_exp() -> None:
    x, y = normal(5, 8), normal(6, 8)
    a = x @ y.T / math.sqrt(8)
    close(feature_maps.taylor2(x) @ feature_maps.taylor2(y).T, 1 + a + a * a / 2)


def test_hedgehog_halves() -> None:
    """Each half sums to 1, or both together; W is the head's own."""
    x, weight = normal(2, 7, 3, 4), normal(3, 4, 5)
    apart, joint = feature_maps.hedgehog(x, weight), feature_maps.hedgehog_joint(x, weight)
    assert apart.shape == joint.shape == (2, 7, 3, 10)
    close(apart[..., :5].sum(-1), torch.ones(2, 7, 3, dtype=torch.float64))
    close(apart[..., 5:].sum(-1), torch.ones(2, 7, 3, dtype=torch.float64))
    close(joint.sum(-1), torch.ones(2, 7, 3, dtype=torch.float64))
    y = x[:, :, 1] @ weight[1]
    close(apart[:, :, 1, :5], y.softmax(-1))
    close(joint[:, :, 1], torch.cat([2 * y, -2 * y], -1).softmax(-1))
    assert float(feature_maps.hedgehog(100 * x, weight).min()) == 1e-12


def test_relu_random_estimates_the_arc_cosine_kernel() -> None:
    """E[relu(w.x) relu(w.y)] = |x| |y| (sin a + (pi - a) cos a) / 2 pi, a the angle between."""
    x, y = normal(2, 6)
    projection = normal(6, 200_000)
    estimate = feature_maps.relu_random(x, projection) @ feature_maps.relu_random(y, projection)
    angle = torch.acos(x @ y / (x.norm() * y.norm()))
    exact = x.norm() * y.norm() * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    assert abs(float(estimate / exact) - 1) < 0.02
    close(feature_maps.relu_random(x, projection, 2.0) * 2, feature_maps.relu_random(x, projection))


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    **feature_maps.NAMED,
    "hedgehog": HedgehogFeatureMap(2, 4, features=3, dtype=torch.float64),
    "hedgehog_joint": HedgehogFeatureMap(2, 4, joint=True, dtype=torch.float64),
    "relu_random": RandomReluFeatureMap(4, 9, bandwidth=0.5, dtype=torch.float64),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MAPS)
def test_only_the_result_is_rounded(name: str, dtype: torch.dtype, autocast: bool) -> None:
    """Of what is beyond float16 on the way there, or is lost beside 1."""
    module, gain = copy.deepcopy(MAPS[name]), 300.0
    if name == "elu1":
        gain = 4.0
    if isinstance(module, nn.Module):
        gain = 1e4
        for weight in module.state_dict().values():
            weight *= 8 if "hedgehog" in name else 1
    x = (gain * normal(1, 50, 2, 4)).to(dtype)
    exact = module(x.double())
    if isinstance(module, nn.Module):
        module.float()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found = module(x)
    assert found.dtype == dtype
    close(found, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("name", MAPS)
def test_gradients(name: str) -> None:
    assert torch.autograd.gradcheck(MAPS[name], normal(1, 3, 2, 4).requires_grad_())


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("causal", [True, False])
def test_in_linear_attention(name: str, causal: bool) -> None:
    """Kernel and reference agree, also in the gradient of the map's weights."""
    q, k, v = normal(1, 50, 2, 4), normal(1, 50, 2, 4), normal(1, 50, 2, 5)
    options = {"feature_map": MAPS[name], "normalize": True, "causal": causal}
    if name in feature_maps.NAMED:
        options["feature_map"] = name
    weights = list(getattr(MAPS[name], "parameters", list)())
    exact_q, q32 = q.requires_grad_(), q.detach().float().requires_grad_()
    exact = linear_attention(exact_q, k, v, **options, backend="reference")
    out = linear_attention(q32, k.float(), v.float(), **options)
    size = float(exact.abs().max())
    assert float((out.double() - exact).abs().max()) <= 2e-5 * size
    expected = torch.autograd.grad(exact.square().sum(), [exact_q, *weights])
    found = torch.autograd.grad(out.square().sum(), [q32, *weights])
    for actual, truth in zip(found, expected, strict=True):
        assert float((actual.double() - truth).abs().max()) <= 1e-4 * float(truth.abs().max())


def test_modules() -> None:
    with pytest.raises(ValueError, match="num_heads is 0"):
        HedgehogFeatureMap(0, 4)
    with pytest.raises(ValueError, match="bandwidth is 0.0"):
        RandomReluFeatureMap(4, 8, bandwidth=0.0)
    assert "joint=True" in repr(MAPS["hedgehog_joint"])
    assert "projection" in RandomReluFeatureMap(4, 8).state_dict()
    x = torch.randn(1, 3, 2, 4, dtype=torch.bfloat16)
    assert HedgehogFeatureMap(2, 4)(x).dtype == torch.bfloat16
