"""From many scored boxes to few: limits per image, suppression, and lists of detections."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyops.ops import nms, soft_nms

Detections = dict[str, Tensor]  # boxes [K, 4], scores [K], labels [K] of an image, best first

SUPPRESSIONS = ("nms", "soft_nms")


def first_per_image(image_ids: Tensor, count: int) -> Tensor:
    """Indices of the first `count` rows of every image, image after image, else in their order.

    Args:
        image_ids: [K] int64; rows are best first.
        count: at most so many of an image.
    """
    ids, order = image_ids.sort(stable=True)
    rank = torch.arange(len(ids), device=ids.device) - torch.searchsorted(ids, ids)
    return order[rank < count]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    image_ids: Tensor,
    *,
    method: str = "nms",
    iou_threshold: float = 0.5,
    min_score: float = 0.0,
    max_per_image: int = 100,
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression of the boxes of all images at once.

    Args:
        boxes: [K, 4] finite x1 y1 x2 y2.
        scores: [K].
        labels: [K] int64; boxes of different labels leave each other alone. None: all alike.
        image_ids: [K] int64.
        method: "nms", or "soft_nms": linear Soft-NMS, in which boxes lose score.
        iou_threshold: the overlap above which a box goes, or loses score.
        min_score: boxes below are dropped; with "soft_nms" also those that fall below it.
        max_per_image: the best are kept.

    Returns:
        Indices [n] of the kept boxes, image after image and best first in each, and their scores.

    Raises:
        ValueError: for an unknown method.
    """
    if method == "soft_nms":
        keep, scores = soft_nms(
            boxes,
            scores,
            iou_threshold=iou_threshold,
            min_score=min_score,
            labels=labels,
            image_ids=image_ids,
            check=False,
        )
    elif method == "nms":
        keep = nms(boxes, scores, iou_threshold, labels=labels, image_ids=image_ids, check=False)
        scores = scores[keep]
        good = scores >= min_score
        keep, scores = keep[good], scores[good]
    else:
        raise ValueError(f"method must be one of {SUPPRESSIONS}, got {method!r}")
    first = first_per_image(image_ids[keep], max_per_image)
    return keep[first], scores[first]


def split_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, image_ids: Tensor, num_images: int
) -> list[Detections]:
    """The detections of every image; rows must come image after image."""
    counts = torch.bincount(image_ids, minlength=num_images).tolist()
    parts: list[Sequence[Tensor]] = [x.split(counts) for x in (boxes, scores, labels)]
    return [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(*parts, strict=True)]
