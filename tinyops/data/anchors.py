"""How well anchors fit the objects of a data set, and anchors that fit them better."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyops.data.types import AnnotatedSet

Array = NDArray[np.float64]
_AT_ONCE = 2**18  # objects that are looked at together
_MOST = 50_000  # boxes that anchors are fitted to


class AnchorLevel(NamedTuple):
    """A level of a pyramid: anchors with these sides [A, 2] around every corner of its cells."""

    stride: int
    sides: Array


def anchor_levels(
    strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]
) -> list[AnchorLevel]:
    """Anchors as `tinyops.nn.anchors.AnchorGenerator` has them.

    Args:
        strides: of the levels, in pixels.
        scales: size of an anchor / stride.
        ratios: height / width.

    Raises:
        ValueError: one of them is empty or has a number that is not positive.
    """
    for name, values in (("strides", strides), ("scales", scales), ("ratios", ratios)):
        if len(values) == 0 or not min(values) > 0:
            raise ValueError(f"{name} must be numbers above 0, got {list(values)}")
    shapes = [(scale / ratio**0.5, scale * ratio**0.5) for ratio in ratios for scale in scales]
    return [AnchorLevel(stride, stride * np.array(shapes)) for stride in strides]


def best_overlaps(data: AnnotatedSet, levels: Sequence[AnchorLevel]) -> Array:
    """The IoU of every object with the anchor that fits it best, [K].

    Objects to be ignored are left out. Anchors lie at (column * stride, row * stride) of the cells
    that begin in the image, and may reach beyond it. Of an anchor's places the one nearest to the
    centre of the object is best along both axes at once, so one place is looked at, not all.
    """
    boxes, sizes = [np.zeros((0, 4))], [np.zeros((0, 2))]
    for image in data.images:
        boxes.append(image.bbox[~image.ignore])
        sizes.append(np.tile([float(image.width), image.height], (len(boxes[-1]), 1)))
    all_boxes, all_sizes = np.concatenate(boxes), np.concatenate(sizes)
    best = np.zeros(len(all_boxes))
    for start in range(0, len(best), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        for level in levels:
            found = _best_of_level(all_boxes[part], all_sizes[part], level)
            best[part] = np.maximum(best[part], found)
    return best


def _best_of_level(boxes: Array, sizes: Array, level: AnchorLevel) -> Array:
    sides = boxes[:, 2:]
    centres = boxes[:, :2] + sides / 2
    last = np.ceil(sizes / level.stride) - 1
    apart = np.abs(centres - level.stride * np.clip(np.round(centres / level.stride), 0, last))
    best = np.zeros(len(boxes))
    for anchor in level.sides:
        common = np.minimum(np.minimum(sides, anchor), (sides + anchor) / 2 - apart).clip(0)
        best = np.maximum(best, _ratio(common.prod(1), sides, anchor))
    return best


def _ratio(common: Array, sides: Array, anchors: Array) -> Array:
    """IoU of boxes with sides [..., 2] that have an area in common."""
    iou: Array = common / (sides.prod(-1) + anchors.prod(-1) - common)
    return iou


def centred_overlaps(sides: Array, anchors: Array) -> Array:
    """[K, A] IoU of boxes [K, 2] and anchors [A, 2] with the same centre."""
    common = np.minimum(sides[:, None], anchors).prod(-1)
    return _ratio(common, sides[:, None], anchors)


def fit_anchors(
    sides: Array, count: int, *, seed: int = 0, starts: int = 5, steps: int = 300
) -> Array:
    """Anchors that overlap boxes best: k-means with the distance 1 - IoU of equal centres.

    It is that of YOLO9000 (Redmon and Farhadi, 2017), with medians instead of means, which gives
    greater overlaps. Starts are chosen by k-means++: each next anchor is a box drawn with a
    probability that grows with the square of its distance from those before; the best of some
    starts is taken. Of more than 50,000 boxes so many are drawn.

    Args:
        sides: [K, 2] widths and heights of objects.
        count: of anchors.
        seed: of the starts.
        starts: how often everything begins anew.
        steps: at most so many in each.

    Returns:
        [count, 2] widths and heights, by rising area.

    Raises:
        ValueError: a number out of range, a side that is not positive and finite, or fewer
            different boxes than anchors.
    """
    for name, number in (("count", count), ("starts", starts), ("steps", steps)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ValueError("sides must be positive and finite")
    if len(np.unique(sides, axis=0)) < count:
        raise ValueError(f"sides must be of at least {count} different boxes for as many anchors")
    generator = np.random.default_rng(seed)
    if len(sides) > _MOST:
        sides = sides[generator.choice(len(sides), _MOST, replace=False)]
    results = [_cluster(sides, _spread(sides, count, generator), steps) for _ in range(starts)]
    anchors = max(results, key=lambda anchors: centred_overlaps(sides, anchors).max(1).mean())
    return anchors[np.argsort(anchors.prod(1), kind="stable")]


def _spread(sides: Array, count: int, generator: np.random.Generator) -> Array:
    """The start of k-means++."""
    chosen = [sides[generator.integers(len(sides))]]
    distance = np.full(len(sides), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, 1 - centred_overlaps(sides, chosen[-1][None])[:, 0])
        weights = distance**2
        share = weights / weights.sum() if weights.any() else None  # of equal boxes, any
        chosen.append(sides[generator.choice(len(sides), p=share)])
    return np.array(chosen)


def _cluster(sides: Array, anchors: Array, steps: int) -> Array:
    """Move anchors to the median of the boxes they fit best; the best ones on the way."""
    best, best_mean, nearest = anchors, -1.0, np.empty(0, int)
    for _ in range(steps):
        overlaps = centred_overlaps(sides, anchors)
        mean = float(overlaps.max(1).mean())
        if mean > best_mean:
            best, best_mean = anchors, mean
        now = overlaps.argmax(1)
        if np.array_equal(now, nearest):
            break
        nearest = now
        anchors = anchors.copy()
        for k in np.unique(nearest):
            anchors[k] = np.median(sides[nearest == k], 0)
    return best


def place_anchors(anchors: Array, strides: Sequence[int]) -> list[AnchorLevel]:
    """Anchors on the levels of a pyramid: each on the coarsest stride of at most half its size.

    Those below twice the finest stride lie on the finest one. All levels are given, those without
    anchors as well.

    Args:
        anchors: [A, 2] widths and heights.
        strides: rising.
    """
    sizes = np.sqrt(anchors.prod(1))
    level = (np.searchsorted(np.array(strides) * 2, sizes, "right") - 1).clip(0)
    return [AnchorLevel(stride, anchors[level == k]) for k, stride in enumerate(strides)]
