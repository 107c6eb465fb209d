"""Which detection found which object, at one threshold of overlap."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask

FALSE, DUPLICATE, LEFT_OUT = -1, -2, -3


def match(
    boxes: ArrayLike,
    scores: ArrayLike,
    objects: ArrayLike,
    regions: ArrayLike = (),
    iou_threshold: float = 0.5,
) -> NDArray[np.int64]:
    """Match detections of one image and class with its objects, one to one.

    The best detection first; each takes the free object of highest IoU, if that is at least
    `iou_threshold`. The others are duplicates if they overlap an object that is taken as much, left
    out if a region has at least `iou_threshold` of their area, and else false alarms.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels.
        scores: [K]; the lower index comes first among equal ones.
        objects: [N, 4] likewise.
        regions: [R, 4] likewise: crowds and what else counts neither way.
        iou_threshold: in (0, 1].

    Returns:
        [K] what each detection is: the index of its object, `FALSE`, `DUPLICATE` or `LEFT_OUT`.

    Raises:
        ValueError: for a threshold out of range.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
    scores = np.asarray(scores, np.float64)
    found, wanted, excluded = (_sized(x) for x in (boxes, objects, regions))
    iou = _overlap(found, wanted, crowd=False)
    left_out = (_overlap(found, excluded, crowd=True) >= iou_threshold).any(1)
    outcome = np.where(left_out, LEFT_OUT, FALSE)
    free = np.ones(len(wanted), bool)
    for k in np.argsort(-scores, kind="stable"):
        overlap = np.where(iou[k] >= iou_threshold, iou[k], 0)
        choice = int((overlap * free).argmax()) if len(wanted) else 0
        if len(wanted) and free[choice] and overlap[choice] > 0:
            outcome[k] = choice
            free[choice] = False
        elif overlap.any():
            outcome[k] = DUPLICATE
    return outcome


def _sized(boxes: ArrayLike) -> NDArray[np.float64]:
    """x1 y1 x2 y2 to x y w h."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def _overlap(
    a: NDArray[np.float64], b: NDArray[np.float64], crowd: bool
) -> NDArray[np.float64]:
    """[A, B] intersection over union, or with `crowd` over the area of `a`."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    flags: Sequence[int] = [int(crowd)] * len(b)
    return np.asarray(mask.iou(a, b, flags)).reshape(len(a), len(b))
