"""Feature maps with weights, for ``feature_map=`` of :func:`tileattn.linear_attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tileattn._common.checks import check_flag, check_int, check_positive
from tileattn.linear.feature_maps import hedgehog, hedgehog_joint, relu_random
from tileattn.nn.resettable import ResettableModule


class HedgehogFeatureMap(ResettableModule):
    """A learned matrix per head, then softmax of both signs; F = 2 * features.

    Args:
        num_heads: H.
        head_dim: D.
        features: M; D by default. The matrix starts as the identity where M = D.
        joint: one softmax over both halves (:func:`tileattn.feature_maps.hedgehog_joint`) in the
            place of one over each.
        device, dtype: of the weight [H, D, M].

    Raises:
        ValueError: sizes below 1.

    Source: Zhang et al., The Hedgehog & the Porcupine (2024).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        features: int | None = None,
        joint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.joint = check_flag("joint", joint)
        shape = (
            check_int("num_heads", num_heads),
            check_int("head_dim", head_dim),
            check_int("features", head_dim if features is None else features),
        )
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self._reset_own()

    @torch.no_grad()
    def _reset_own(self) -> None:
        self.weight.zero_().diagonal(dim1=1, dim2=2).fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, D] -> [..., H, 2 M]."""
        return hedgehog_joint(x, self.weight) if self.joint else hedgehog(x, self.weight)

    def extra_repr(self) -> str:
        heads, dim, features = self.weight.shape
        return f"num_heads={heads}, head_dim={dim}, features={features}, joint={self.joint}"


def draw_projection(projection: Tensor, generator: torch.Generator | None) -> None:
    """Fills R with normal numbers, the same ones for every device and dtype of R."""
    where = "cpu" if generator is None else generator.device
    projection.copy_(torch.randn(projection.shape, generator=generator, device=where))


class RandomReluFeatureMap(ResettableModule):
    """relu(x R / b) / sqrt(M) with a fixed normal R [D, M].

    Args:
        head_dim: D.
        features: M.
        bandwidth: b > 0.
        generator: of the random numbers; torch's default one if None.
        device, dtype: of R, a buffer that is saved with the module.

    Raises:
        ValueError: sizes below 1, or a bandwidth that is not positive.

    Source: WERSA (2025).
    """

    projection: Tensor

    def __init__(
        self,
        head_dim: int,
        features: int,
        *,
        bandwidth: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = check_int("head_dim", head_dim), check_int("features", features)
        self.bandwidth = check_positive("bandwidth", bandwidth)
        self.register_buffer("projection", torch.empty(shape, device=device, dtype=dtype))
        self._reset_own(generator)

    def _reset_own(self, generator: torch.Generator | None = None) -> None:
        draw_projection(self.projection, generator)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        return relu_random(x, self.projection, self.bandwidth)

    def extra_repr(self) -> str:
        dim, features = self.projection.shape
        return f"head_dim={dim}, features={features}, bandwidth={self.bandwidth}"
