"""Which object every box belongs to: the matching of Faster R-CNN, without an N x M matrix."""

import torch
from torch import Tensor

from tinyops.nn.batch import GroundTruth
from tinyops.ops import max_overlap, topk_per_target

BACKGROUND, IGNORED = -1, -2


def match_by_overlap(
    boxes: Tensor,
    image_ids: Tensor,
    truth: GroundTruth,
    *,
    positive: float,
    negative: float,
    least_best: float | None = None,
    ignore_above: float = 0.5,
) -> Tensor:
    """The object of every box by IoU, with the rules of MaxIoUAssigner in mmdet.

    In this order: IGNORED; BACKGROUND where the best IoU is below `negative`; the best object where
    it is at least `positive`; the boxes of greatest IoU with an object, all equal ones, where that
    is at least `least_best`. A background box most of which is in an ignored region is IGNORED.

    Args:
        boxes: [K, 4] anchors or proposals of all images.
        image_ids: [K] int64, the image of each.
        truth: the objects.
        positive: IoU of a match.
        negative: IoU below which a box is background; at most `positive`.
        least_best: objects without a match take their best boxes from this IoU on (low-quality
            matches); None: they do not.
        ignore_above: of intersection / area of the box with an ignored region.

    Returns:
        [K] int64: the index of the object, BACKGROUND or IGNORED.
    """
    overlap, best = max_overlap(
        boxes, truth.boxes, image_ids=image_ids, target_image_ids=truth.image_ids, check=False
    )
    matches = torch.full_like(best, IGNORED)
    matches = torch.where(overlap < negative, BACKGROUND, matches)
    matches = torch.where((overlap >= positive) & (best >= 0), best, matches)
    if least_best is not None and len(truth.boxes):
        taken = topk_per_target(
            boxes,
            truth.boxes,
            1,
            all_ties=True,
            min_value=least_best,
            image_ids=image_ids,
            target_image_ids=truth.image_ids,
            check=False,
        )[-1]
        matches = torch.where(taken >= 0, taken, matches)
    if len(truth.ignored_boxes):
        inside, _ = max_overlap(
            boxes,
            truth.ignored_boxes,
            mode="iof_box",
            image_ids=image_ids,
            target_image_ids=truth.ignored_image_ids,
            check=False,
        )
        matches = torch.where((matches == BACKGROUND) & (inside > ignore_above), IGNORED, matches)
    return matches
