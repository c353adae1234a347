"""Every module of the package: built on meta and filled later, reset, cast, copied, pickled.

Modules are found by walking the package. One that needs more than (channels, heads), or another
input than [batch, tokens, channels], stands in ``VARIANTS`` or ``INPUTS``.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tileattn.integrations.natten
import tileattn.nn
from tileattn import decays
from tileattn.nn import (
    HedgehogFeatureMap,
    LightningAttention,
    PrefixLinearAttention,
)

PACKAGES = (tileattn.nn, tileattn.integrations.natten)
DECAY = decays.retention(4)
SIZES = dict(embed_dim=32, num_heads=4)
GRIDS = {"1": (9,), "2": (5, 6), "3": (3, 4, 5)}

#: name of a class -> all arguments of each way to build it, but the device
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "AgentAttention": [dict(SIZES, image=(5, 6), agents=(3, 2))],
    "Attention": [SIZES, dict(SIZES, learn_sinks=True, bias=False)],
    "HedgehogFeatureMap": [dict(num_heads=4, head_dim=32, features=8)],
    "LightningAttention": [
        SIZES,
        dict(SIZES, layer=1, num_layers=3),
        dict(SIZES, log_decay=DECAY),
    ],
    "PrefixLinearAttention": [
        SIZES,
        dict(SIZES, feature_map=HedgehogFeatureMap(4, 8)),
    ],
    "RandomReluFeatureMap": [dict(head_dim=32, features=8)],
}
VARIANTS["NeighborhoodAttentionGeneric"] = [dict(SIZES, na_dim=2, kernel_size=3)]
for n in GRIDS:
    VARIANTS[f"NeighborhoodAttention{n}d"] = [
        dict(SIZES, window=3, relative_bias=bias) for bias in (False, True)
    ]
    VARIANTS[f"NeighborhoodAttention{n}D"] = [dict(SIZES, kernel_size=3)]

#: name of a class -> shapes of what it is called with
INPUTS: dict[str, list[tuple[int, ...]]] = {
    "AgentAttention": [(2, 5, 6, 32)],
    "HedgehogFeatureMap": [(2, 11, 4, 32)],
    "NeighborhoodAttentionGeneric": [(2, 5, 6, 32)],
    "PrefixLinearAttention": [(2, 11, 32), (2, 5, 32)],
    **{f"NeighborhoodAttention{n}{d}": [(2, *grid, 32)] for n, grid in GRIDS.items() for d in "dD"},
}


def classes(package: ModuleType) -> Iterator[type[nn.Module]]:
    """Public modules with a forward, each from where it is defined."""
    inner = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}.")
    for name in (package.__name__, *(found.name for found in inner)):
        for found in vars(importlib.import_module(name)).values():
            if (
                isinstance(found, type)
                and issubclass(found, nn.Module)
                and found.__module__ == name
                and not found.__name__.startswith("_")
                and found.forward is not nn.Module.forward
            ):
                yield found


Build = Callable[..., nn.Module]


def _cases() -> Iterator[Any]:
    for package in PACKAGES:
        for found in classes(package):
            for number, arguments in enumerate(VARIANTS.get(found.__name__, [SIZES])):

                def build(
                    device: str | None = None,
                    found: type[nn.Module] = found,
                    arguments: dict[str, Any] = arguments,
                ) -> nn.Module:
                    return found(**copy.deepcopy(arguments), device=device)

                yield pytest.param(build, id=f"{found.__name__}-{number}")


every_module = pytest.mark.parametrize("build", list(_cases()))


def on_meta(build: Build) -> nn.Module:
    """Modules among the arguments are on meta too, as in a model that is built there."""
    module = build("meta").to("meta")
    assert all(t.is_meta for t in tensors(module).values())
    return module


def emptied(module: Any) -> Any:
    """to_empty(), with memory that was not zero by luck."""
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in tensors(module).values():
            tensor.fill_(torch.nan)
    return module


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def run(module: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = INPUTS.get(type(module).__name__, [(2, 11, 32)])
    *_, last = module.state_dict().values()  # the first may be a constant that is never cast
    inputs = [torch.randn(*shape, generator=generator).to(last.dtype) for shape in shapes]
    out = module(*inputs)
    return list(out) if isinstance(out, tuple) else [out]


def assert_same(actual: nn.Module, expected: nn.Module) -> None:
    """Equal tensors of equal dtypes by equal names, and equal results."""
    ours, theirs = tensors(actual), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0, msg=name)
    assert all(bool(out.isfinite().all()) for out in run(expected))
    for one, other in zip(run(actual), run(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def perturbed(module: nn.Module) -> nn.Module:
    """With values that no constructor gives, as after training."""
    with torch.no_grad():
        for tensor in tensors(module).values():
            tensor.mul_(1.25).sub_(0.01)
    return module


@every_module
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_meta_then_load(build: Build, assign: bool) -> None:
    trained = perturbed(build())
    module = on_meta(build)
    if not assign:
        emptied(module)
    module.load_state_dict(trained.state_dict(), assign=assign)
    assert_same(module, trained)


@every_module
def test_context_then_load(build: Build) -> None:
    """Under torch.device("meta") instead of with device="meta"."""
    with torch.device("meta"):
        module = build()
    trained = perturbed(build())
    emptied(module).load_state_dict(trained.state_dict())
    assert_same(module, trained)


@every_module
def test_meta_then_reset(build: Build) -> None:
    """What the constructor would have given, drawn from the same random numbers."""
    torch.manual_seed(0)
    direct = build()
    module = emptied(on_meta(build))
    torch.manual_seed(0)
    module.reset_parameters()  # type: ignore[operator]
    assert_same(module, direct)


@every_module
def test_reset_of_each_submodule_by_itself(build: Build) -> None:
    """As FSDP fills a model: each part with tensors of its own, before and after its children."""
    for order in (1, -1):
        module = on_meta(build)
        for part in list(module.modules())[::order]:
            if [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
                part.to_empty(device="cpu", recurse=False)
                part.reset_parameters()  # type: ignore[operator]
        assert all(bool(tensor.isfinite().all()) for tensor in tensors(module).values())
        run(module)


@every_module
def test_cast_on_meta_then_load(build: Build) -> None:
    """Tensors that stay float32 when a module is cast do so on meta too."""
    trained = perturbed(build()).bfloat16()
    module = on_meta(build).bfloat16()
    emptied(module).load_state_dict(trained.state_dict())
    assert_same(module, trained)


@every_module
def test_copies(build: Build) -> None:
    trained = perturbed(build())
    for copied in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert_same(copied, trained)
        with torch.no_grad():
            for tensor in tensors(copied).values():
                tensor.zero_()
    assert all(bool(tensor.any()) for tensor in perturbed(build()).state_dict().values())


@every_module
def test_casts(build: Build) -> None:
    """There and back changes at most what the dtype rounds; the state follows the module."""
    trained = perturbed(build())
    low = copy.deepcopy(trained).to(torch.bfloat16)
    assert all(out.dtype in (torch.bfloat16, torch.float32) for out in run(low))
    assert_same(copy.deepcopy(low).double().to(torch.bfloat16), low)
    restored = build()
    restored.load_state_dict(low.float().state_dict())
    for name, tensor in tensors(trained).items():
        torch.testing.assert_close(tensors(restored)[name], tensor, rtol=2**-8, atol=0, msg=name)


def test_a_child_that_cannot_be_reset_is_named() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    module = PrefixLinearAttention(32, 4, feature_map=nn.Sequential(nn.ReLU(), Features()))
    with pytest.raises(NotImplementedError, match=r"Features .*feature_map\.1.* reset_parameters"):
        module.reset_parameters()


class TestLightningDecay:
    """The decay is a constant of the layer, held in float32."""

    def test_state_without_it(self) -> None:
        """From a model that computes its decays: those of the constructor stay."""
        trained = LightningAttention(32, 4, layer=1, num_layers=3)
        state = {n: t for n, t in trained.state_dict().items() if n != "log_decay"}
        module = emptied(LightningAttention(32, 4, layer=1, num_layers=3, device="meta"))
        module.load_state_dict(state)
        assert_same(module, trained)

    def test_casts(self) -> None:
        exact = LightningAttention(32, 4).log_decay
        assert torch.equal(LightningAttention(32, 4).half().log_decay, exact)
        low = emptied(LightningAttention(32, 4, device="meta").half())
        low.reset_parameters()
        assert torch.equal(low.log_decay, exact)

    def test_low_precision_state(self) -> None:
        module = LightningAttention(32, 4, device="meta")
        trained = LightningAttention(32, 4)
        module.load_state_dict(trained.bfloat16().state_dict(), assign=True)
        assert module.log_decay.dtype == torch.float32
        low = {n: t.bfloat16() for n, t in trained.state_dict().items()}
        module.load_state_dict(low, assign=True)
        assert module.log_decay.dtype == torch.float32

    def test_given_on_meta(self) -> None:
        """Nothing knows its values but a state dict."""
        trained = LightningAttention(32, 4, log_decay=DECAY)
        with torch.device("meta"):
            module = LightningAttention(32, 4, log_decay=decays.retention(4))
        emptied(module)
        state = {n: t for n, t in trained.state_dict().items() if n != "log_decay"}
        with pytest.raises(RuntimeError, match="Missing key.*log_decay"):
            module.load_state_dict(state)
        with pytest.raises(RuntimeError, match="log_decay was given on meta"):
            module.reset_parameters()
        module.load_state_dict(trained.state_dict())
        assert_same(module, trained)

    def test_bad(self) -> None:
        with pytest.raises(TypeError, match="log_decay is -0.1"):
            LightningAttention(32, 4, log_decay=-0.1)
        with pytest.raises(TypeError, match="log_decay has dtype torch.int64"):
            LightningAttention(32, 4, log_decay=torch.zeros(4, dtype=torch.int64))
