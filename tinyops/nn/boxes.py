"""Boxes as offsets from other boxes, and boxes cut at the border of their image."""

import math

import torch
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)


def encode(boxes: Tensor, anchors: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Boxes as offsets from anchors: [(x - xa) / wa, (y - ya) / ha, ln(w / wa), ln(h / ha)] / stds.

    Fast R-CNN's parametrisation. Boxes without width or height count as 1e-6 pixels wide or high.

    Args:
        boxes: [K, 4] x1 y1 x2 y2.
        anchors: [K, 4].
        stds: divisors of the four offsets.
    """
    sizes, anchor_sizes = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    anchor_sizes = anchor_sizes.clamp(min=1e-6)
    shifts = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / anchor_sizes
    growth = (sizes.clamp(min=1e-6) / anchor_sizes).log()
    return torch.cat([shifts, growth], 1) / boxes.new_tensor(stds)


def decode(offsets: Tensor, anchors: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """The inverse of `encode`; boxes grow at most by a factor of 1000 / 16.

    Args:
        offsets: [K, 4] or [K, C, 4], computed in float32 at least.
        anchors: [K, 4].
        stds: as in `encode`.

    Returns:
        Boxes in the shape of `offsets`.
    """
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    if offsets.dim() == 3:
        anchors = anchors[:, None]
    offsets = offsets * offsets.new_tensor(stds)
    sizes = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * sizes
    halves = sizes * offsets[..., 2:].clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp() / 2
    return torch.cat([centres - halves, centres + halves], -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes at the borders of their images.

    Args:
        boxes: [K, 4] or [K, C, 4].
        sizes: [K, 2] height and width of the image of each.
    """
    limits = sizes.flip(-1).repeat(1, 2).to(boxes.dtype)  # w h w h
    if boxes.dim() == 3:
        limits = limits[:, None]
    return torch.minimum(boxes.clamp(min=0), limits)
