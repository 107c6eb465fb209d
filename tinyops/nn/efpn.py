"""EFPN: a pyramid with one level more, finer than those of the backbone, for small objects."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.assign import IGNORED
from tinyops.nn.batch import GroundTruth
from tinyops.nn.fpn import FPN, initialise_convolutions
from tinyops.nn.roi import BoxHead, Candidates, RoIHeads, RoIPool, sides_of
from tinyops.nn.rpn import Proposals
from tinyops.ops import gated_upsample_add, pixel_shuffle_concat

SLOPE = 0.1  # of the leaky ReLUs


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), 3x3, without normalisation.

    Args:
        channels: of x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to the same."""
        return F.relu_(x + self.conv2(F.relu_(self.conv1(x))))


class FeatureTextureTransfer(nn.Module):
    """A map at twice its resolution, with the textures of a finer one (FTT; EFPN, eq. 3).

    P3' = Et(P2 || up(Ec(P3))) + up(Ec(P3)), with up a sub-pixel convolution, || concatenation, and
    residual blocks in the extractors Ec and Et. As released, two convolutions follow, and P3 at
    twice its size by nearest neighbour is added; the paper names neither.

    Args:
        channels: of both maps and of the result.
        width: channels within; None: twice `channels`, as released. The paper does not say.
        content_blocks: residual blocks of Ec; 1 as released, 2 in the paper.
        texture_blocks: residual blocks of Et.
        order: of the channels of the sub-pixel convolution: "crd", as released and in
            torch.nn.PixelShuffle, or "dcr", eq. 4 as printed.

    Raises:
        ValueError: for sizes below 1, or another order.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        width: int | None = None,
        content_blocks: int = 1,
        texture_blocks: int = 2,
        order: str = "crd",
    ) -> None:
        super().__init__()
        width = 2 * channels if width is None else width
        for name, value in (
            ("width", width),
            ("content_blocks", content_blocks),
            ("texture_blocks", texture_blocks),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if order not in ("crd", "dcr"):
            raise ValueError(f"order must be 'crd' or 'dcr', got {order!r}")
        self.width, self.order = width, order
        self.content_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.content_blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(content_blocks)))
        self.subpixel_conv = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.texture_conv = nn.Conv2d(width + channels, width, 3, padding=1)
        self.texture_blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(texture_blocks)))
        self.tail_conv = nn.Conv2d(width, width, 3, padding=1)
        self.output_conv = nn.Conv2d(width, channels, 3, padding=1)
        initialise_convolutions(self)

    def forward(self, coarse: Tensor, reference: Tensor) -> Tensor:
        """Transfer.

        Args:
            coarse: [N, channels, H, W], P3.
            reference: [N, channels, 2H, 2W], P2.

        Returns:
            [N, channels, 2H, 2W].

        Raises:
            ValueError: for a reference of another size.
        """
        size = [2 * side for side in coarse.shape[-2:]]
        if list(reference.shape[-2:]) != size:
            raise ValueError(
                f"reference must have twice the size of coarse, {size}, "
                f"got {list(reference.shape[-2:])}"
            )
        x = F.leaky_relu_(self.content_conv(coarse), SLOPE)
        x = self.subpixel_conv(x + self.content_blocks(x))
        both = pixel_shuffle_concat(x, reference, negative_slope=SLOPE, order=self.order)
        texture = self.texture_blocks(F.leaky_relu_(self.texture_conv(both), SLOPE))
        x = F.leaky_relu_(self.tail_conv(texture + both[:, : self.width]), SLOPE)
        return gated_upsample_add(self.output_conv(x), coarse)


class Extension(nn.Module):
    """The level below the finest one of a pyramid (EFPN, eq. 1).

    P2' = conv3x3(conv1x1(C2') + up(P3')), with up nearest; eq. 1 as printed has no convolutions.

    Args:
        in_channels: of C2'.
        channels: of the pyramid.
        transfer: (P3, P2) -> P3'.
    """

    def __init__(self, in_channels: int, channels: int, transfer: FeatureTextureTransfer) -> None:
        super().__init__()
        self.transfer = transfer
        self.lateral_conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.output_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        initialise_convolutions(self)

    def forward(self, finer: Tensor, merged: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """P2' [N, channels, 4H, 4W] and P3' [N, channels, 2H, 2W].

        Args:
            finer: [N, in_channels, 4H, 4W], C2'.
            merged: maps within the pyramid, the first two of [N, channels, 2H, 2W] and [.., H, W].
        """
        transferred = self.transfer(merged[1], merged[0])
        return self.output_conv(
            gated_upsample_add(self.lateral_conv(finer), transferred)
        ), transferred


class EFPN(FPN):
    """FPN, and with C2' before the features of the backbone P2' before the levels.

    Args:
        in_channels: of C2 to C5; C2' has those of C2.
        channels: of every level of the pyramid.
        strides: pixels of the image per cell of C2 to C5; C2' has half that of C2.
        texture_width: see `FeatureTextureTransfer`, and so are the next three.
        content_blocks: of the extractor of contents.
        texture_blocks: of the extractor of textures.
        shuffle_order: of channels.

    Raises:
        ValueError: for settings that FPN or FeatureTextureTransfer refuse, and where C3 has not
            twice the stride of C2, an even number.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        texture_width: int | None = None,
        content_blocks: int = 1,
        texture_blocks: int = 2,
        shuffle_order: str = "crd",
    ) -> None:
        super().__init__(in_channels, channels, strides)
        if strides[0] % 2 or list(strides[1:2]) != [2 * strides[0]]:
            raise ValueError(
                f"strides must begin with an even number and its double, got {list(strides)}"
            )
        self.finer_stride = strides[0] // 2
        transfer = FeatureTextureTransfer(
            channels,
            width=texture_width,
            content_blocks=content_blocks,
            texture_blocks=texture_blocks,
            order=shuffle_order,
        )
        self.extension = Extension(in_channels[0], channels, transfer)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """C2 to C5 to P2 to P6, as FPN; with C2' before them to P2', P2 to P6."""
        finer = features[: -len(self.lateral_convs)]
        merged = self.merge(features[len(finer) :])
        extended = [self.extension(x, merged)[0] for x in finer]
        return [*extended, *self.finish(merged)], {}


class SmallRoIHeads(RoIHeads):
    """Second stage for small boxes, on the first of the levels alone.

    Args:
        pool: of that level.
        head: features -> logits, offsets.
        small: only proposals and objects of a side sqrt(width * height) below it count, in pixels.
        options: of `RoIHeads`.
    """

    def __init__(self, pool: RoIPool, head: BoxHead, *, small: float, **options: Any) -> None:
        super().__init__(pool, head, **options)
        if small <= 0:
            raise ValueError(f"small must be above 0, got {small}")
        self.small = small

    def are_small(self, boxes: Tensor) -> Tensor:
        """[K] bool."""
        return sides_of(boxes) < self.small

    def candidates(self, proposals: Proposals, truth: GroundTruth) -> Candidates:
        """As of `RoIHeads`; those that are not small are IGNORED."""
        every = super().candidates(proposals, truth)
        matches = torch.where(self.are_small(every.boxes), every.matches, IGNORED)
        return replace(every, matches=matches)
