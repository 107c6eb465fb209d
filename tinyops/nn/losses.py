"""Sums of losses, in float32 at least; the divisor is the caller's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyops.nn.boxes import encode


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, the rest stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def objectness_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy, summed, of the logits [P] of objects and [Q] of background."""
    logits = at_least_float32(torch.cat([positive, negative]))
    targets = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def box_loss(
    offsets: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    stds: tuple[float, float, float, float],
    beta: float = 0.0,
) -> Tensor:
    """Smooth L1 between predicted and true offsets, summed over boxes and coordinates.

    See `box_losses`.
    """
    return box_losses(offsets, boxes, anchors, stds, beta).sum()


def box_losses(
    offsets: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    stds: tuple[float, float, float, float],
    beta: float = 0.0,
) -> Tensor:
    """[K] smooth L1 between predicted and true offsets, summed over the coordinates of every box.

    0.5 * d^2 / beta where d = |predicted - true| < beta, else d - beta / 2; L1 with beta = 0.

    Args:
        offsets: [K, 4] predicted.
        boxes: [K, 4] the objects.
        anchors: [K, 4] what the offsets count from.
        stds: of `encode`.
        beta: where the loss turns from a parabola to a line.
    """
    targets = encode(boxes, anchors, stds)
    offsets = at_least_float32(offsets)
    targets = targets.to(offsets.dtype)
    return F.smooth_l1_loss(offsets, targets, beta=beta, reduction="none").sum(1)
