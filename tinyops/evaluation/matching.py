"""Which detection found which object, at one threshold of overlap."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask

FOUND, DUPLICATE, FALSE, LEFT_OUT = range(4)


def match(
    boxes: ArrayLike,
    scores: ArrayLike,
    objects: ArrayLike,
    regions: ArrayLike = (),
    iou_threshold: float = 0.5,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match the detections of one image and class with its objects, one to one.

    The best detection first; each takes the free object of highest IoU, if that is at least
    `iou_threshold`. A detection without one is a duplicate if it overlaps as much of an object that
    is taken; it is left out if a region has at least `iou_threshold` of its area; otherwise it is a
    false alarm.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels.
        scores: [K]; the lower index comes first among equal ones.
        objects: [N, 4] like the boxes.
        regions: [R, 4] likewise: crowds, and what else counts neither way.
        iou_threshold: in (0, 1].

    Returns:
        kinds: [K] FOUND, DUPLICATE, FALSE or LEFT_OUT.
        targets: [K] index of the object that was found or, by a duplicate, overlapped most; or -1.

    Raises:
        ValueError: for a threshold out of range.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
    found, wanted, excluded = (_sized(x) for x in (boxes, objects, regions))
    iou = _overlap(found, wanted, crowd=False)
    iou[iou < iou_threshold] = 0
    left_out = (_overlap(found, excluded, crowd=True) >= iou_threshold).any(1)
    kinds = np.where(left_out, LEFT_OUT, FALSE)
    targets = np.full(len(found), -1)
    free = np.ones(len(wanted))
    for k in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        if iou[k].any():
            is_free = (iou[k] * free).any()
            kinds[k] = FOUND if is_free else DUPLICATE
            targets[k] = (iou[k] * free if is_free else iou[k]).argmax()
            free[targets[k]] = 0
    return kinds, targets


def _sized(boxes: ArrayLike) -> NDArray[np.float64]:
    """x1 y1 x2 y2 to x y w h."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64], crowd: bool) -> NDArray[np.float64]:
    """[A, B] intersection over union, or with `crowd` over the area of `a`."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    return np.asarray(mask.iou(a, b, [int(crowd)] * len(b))).reshape(len(a), len(b))
