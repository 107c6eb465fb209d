"""What heads with predictions at every anchor share: the best boxes of every level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyops.nn.anchors import BatchAnchors
from tinyops.nn.batch import ImageBatch
from tinyops.nn.boxes import clip, decode
from tinyops.nn.losses import at_least_float32


@dataclass(frozen=True)
class Candidates:
    """Scored boxes of all images, before suppression.

    Attributes:
        boxes: [K, 4] with width and height, inside their images.
        scores: [K] in 0..1.
        classes: [K] int64 from 0 on.
        image_ids: [K] int64.
        level_ids: [K] int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    image_ids: Tensor
    level_ids: Tensor


@torch.no_grad()
def best_candidates(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: BatchAnchors,
    batch: ImageBatch,
    *,
    count: int,
    stds: tuple[float, float, float, float],
) -> Candidates:
    """The `count` best pairs of anchor and class of every level and image, as boxes.

    Those of anchors in the padding, and boxes without area in their image, are left out.

    Args:
        logits: [N, H*W*A, C] of every level.
        offsets: [N, H*W*A, 4] of every level.
        anchors: of the batch.
        batch: the images.
        count: at most so many of a level.
        stds: of `decode`.
    """
    parts = []
    for k, (logit, offset) in enumerate(zip(logits, offsets, strict=True)):
        logit = at_least_float32(logit)
        if anchors.inside is not None:
            logit = logit.masked_fill(~anchors.inside[k][..., None], -torch.inf)
        classes = logit.shape[2]
        top, index = best_of_rows(logit.flatten(1), count)  # [N, k]
        anchor = index // classes
        picked = offset.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = decode(picked.flatten(0, 1), anchors.levels[k][anchor.flatten()], stds)
        image_ids = torch.arange(len(top), device=top.device).repeat_interleave(top.shape[1])
        levels = torch.full_like(image_ids, k)
        parts.append((boxes, top.flatten(), (index % classes).flatten(), image_ids, levels))
    boxes, top, label, image_ids, levels = (torch.cat(x) for x in zip(*parts, strict=True))
    boxes = clip(boxes, batch.size_table()[image_ids])
    filled = (boxes[:, 2:] > boxes[:, :2]).all(1)  # False for NaN
    good = (filled & (top > -torch.inf)).nonzero()[:, 0]
    return Candidates(boxes[good], top[good].sigmoid(), label[good], image_ids[good], levels[good])


def best_of_rows(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest of every row [N, K], or all, greatest first, and their indices.

    Equal ones come by index, which torch.topk does not promise: blank cells have equal scores. Only
    which of those that equal the last one are among them is left to torch.topk.
    """
    index = x.topk(min(count, x.shape[1]), dim=1).indices.sort(dim=1).values
    top, order = x.gather(1, index).sort(dim=1, descending=True, stable=True)
    return top, index.gather(1, order)


def init_normal(conv: nn.Module, std: float = 0.01, bias: float = 0.0) -> None:
    """Start a convolution of a head: normal weights, equal biases."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=std)
    nn.init.constant_(conv.bias, bias)
