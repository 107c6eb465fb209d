"""Feature pyramid network."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.ops import gated_upsample_add


class FPN(nn.Module):
    """P2..P6 of C2..C5: 1x1 laterals, nearest top-down sums, 3x3 outputs (Lin et al., 2017).

    The last level is every second pixel of the one before it.

    Args:
        in_channels: of the levels of the backbone, finest first.
        channels: of every level of the pyramid.
        strides: pixels of the image per cell of each level of the backbone.

    Raises:
        ValueError: for in_channels and strides that are not one number per level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.strides = pyramid_strides(in_channels, strides)
        self.lateral_convs = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        initialise_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """[N, C_k, h_k, w_k] each to ([N, channels, h_k, w_k] each and one level more, {})."""
        return self.finish(self.merge(features)), {}

    def merge(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps within: laterals and what comes from above, before the 3x3 convolutions."""
        merged = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        for k in range(len(merged) - 1, 0, -1):
            merged[k - 1] = gated_upsample_add(merged[k - 1], merged[k])
        return merged

    def finish(self, merged: Sequence[Tensor]) -> list[Tensor]:
        """The levels from the maps within."""
        levels = [conv(x) for conv, x in zip(self.output_convs, merged, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]

    def losses(
        self, aux: dict[str, list[Tensor]], batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """None: {}."""
        return {}


def pyramid_strides(in_channels: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of a pyramid with one level more than the backbone has."""
    if len(in_channels) != len(strides) or not strides:
        raise ValueError(
            f"in_channels and strides must be one number per level, got {list(in_channels)} and "
            f"{list(strides)}"
        )
    return (*strides, 2 * strides[-1])


def initialise_convolutions(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for all 2d convolutions within."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
