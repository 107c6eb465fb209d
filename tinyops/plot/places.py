"""Which objects were found, and which places of an image show most of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops.plot.pixels import Window

_MOST = 4000  # windows that are looked at

Boxes = NDArray[np.float64]  # [K, 4] x1 y1 x2 y2


def choose_windows(
    boxes: Boxes,
    groups: NDArray[np.int64],
    image: tuple[int, int],
    window: tuple[int, int],
    count: int,
) -> list[Window]:
    """Windows that show many boxes, of different groups, in different parts of an image.

    The next window is the one with the greatest

        min(1, distance to the nearest window so far / a fifth of the image's diagonal)
        * sum over groups of sqrt(boxes of the group in it) / (1 + windows so far with the group)

    of which only whole boxes count. Windows do not overlap, and equal boxes give equal windows.
    They lie around boxes; of very many, around an even choice of some thousands.

    Args:
        boxes: [K, 4] in pixels of the image.
        groups: [K] such as size bands, from 0.
        image: width and height.
        window: width and height, no larger than the image.
        count: at most so many.
    """
    size, limits = np.array(window), np.array(image)
    order = np.argsort(boxes[:, 0], kind="stable")
    boxes, groups = boxes[order], groups[order]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    corners = _corners(centres[:: 1 + len(boxes) // _MOST], size, limits)
    first = np.searchsorted(boxes[:, 0], corners[:, 0], "left")
    last = np.searchsorted(boxes[:, 0], corners[:, 0] + size[0], "right")
    shown = np.zeros((len(corners), 1 + int(groups.max(initial=0))))  # boxes per window and group
    for k in range(len(corners)):
        near = slice(first[k], last[k])
        inside = _whole(boxes[near], corners[k], size)
        shown[k] = np.bincount(groups[near][inside], minlength=shown.shape[1])
        if inside.sum() > 1:  # put those in the middle
            low, high = boxes[near][inside, :2].min(0), boxes[near][inside, 2:].max(0)
            corners[k] = _corners((low + high) / 2, size, limits)
    chosen: list[Window] = []
    seen = np.zeros(shown.shape[1])
    spread = np.ones(len(corners))
    while len(chosen) < min(count, len(corners)):
        value = (np.sqrt(shown) / (1 + seen)).sum(1) * spread
        best = int(value.argmax())
        if value[best] <= 0:
            break
        x, y = (int(v) for v in corners[best])
        chosen.append((x, y, x + window[0], y + window[1]))
        seen += shown[best] > 0
        apart = np.abs(corners - corners[best])
        distance = np.hypot(*apart.T) / (np.hypot(*limits) / 5)
        spread = np.minimum(spread, np.where((apart < size).all(1), 0, distance))
    return sorted(chosen, key=lambda window: (window[1], window[0]))


def _corners(centres: NDArray[np.float64], size: Any, limits: Any) -> NDArray[np.int64]:
    """Upper left corners of windows around points, moved inside of the image."""
    corners: NDArray[np.int64] = np.clip(np.round(centres - size / 2), 0, limits - size).astype(int)
    return corners


def _whole(boxes: Boxes, corner: Any, size: Any) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = ((boxes[:, :2] >= corner) & (boxes[:, 2:] <= corner + size)).all(1)
    return whole


def match(
    boxes: Boxes, scores: NDArray[np.floating], truth: Boxes, threshold: float = 0.5
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which boxes hit an object, and which objects were hit.

    Boxes choose best first, each the object not yet taken with the greatest IoU.

    Args:
        boxes: [K, 4].
        scores: [K].
        truth: [M, 4].
        threshold: of the IoU; it suffices to reach it.

    Returns:
        [K] and [M].
    """
    hit, taken = np.zeros(len(boxes), bool), np.zeros(len(truth), bool)
    order = np.argsort(truth[:, 0], kind="stable")
    truth = truth[order]
    areas = (truth[:, 2:] - truth[:, :2]).prod(1)
    widest = (truth[:, 2] - truth[:, 0]).max(initial=0)
    for k in np.argsort(-scores, kind="stable"):
        x1, y1, x2, y2 = boxes[k]
        near = slice(*np.searchsorted(truth[:, 0], (x1 - widest, x2)))
        low, high = np.maximum(truth[near, :2], (x1, y1)), np.minimum(truth[near, 2:], (x2, y2))
        common = np.clip(high - low, 0, None).prod(1)
        union = areas[near] + (x2 - x1) * (y2 - y1) - common
        iou = np.where(taken[near] | (union <= 0), 0, common / np.where(union > 0, union, 1))
        if len(iou) and iou.max() >= threshold:
            hit[k] = taken[near.start + iou.argmax()] = True
    found = np.zeros(len(truth), bool)
    found[order] = taken
    return hit, found
