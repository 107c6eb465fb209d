"""Detections matched with objects, class by class and image by image (csrc/eval/match.h).

The rules of a protocol come as masks. A range is a size band: [A, N] masks say for each of A ranges
what is true of each of N objects.
"""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyops import _eval
from tinyops.evaluation.tables import Detections, GroundTruth, Mask

RECALL = np.linspace(0, 1, 101)  # COCO's recall points


def match(
    truth: GroundTruth,
    found: Detections,
    *,
    ignored: Mask,
    region: Mask,
    outside: Mask,
    thresholds: Sequence[float],
    most: int,
    absorb: Sequence[float] = (),
    unfindable: Mask | None = None,
    drop_outside: bool = False,
    targets: bool = False,
    threads: int | None = None,
) -> _eval.Matches:
    """Match one to one, the best detection first.

    A detection takes the free object of highest IoU, if that is at least the threshold, the later
    one of equals; if there is none, an ignored object likewise.

    Args:
        truth: the N objects.
        found: the K detections; the earlier comes first among equal scores.
        ignored: [A, N] objects that do not count, nor do detections matched with them.
        region: [A, N] ignored objects that take any number of detections, by the share of the
            detection's area that they overlap.
        outside: [A, K] detections that do not count when they match nothing.
        thresholds: T least overlaps, in (0, 1].
        most: best detections of a class and an image that are looked at.
        absorb: for every threshold that of TinyPerson's last step (`tinyperson.py`); empty: none.
        unfindable: [N] objects whose detections are false alarms; None: no object.
        drop_outside: detections that are outside take no object.
        targets: whether the result has `targets`.
        threads: None: as many as there are processors. The result does not depend on it.

    Returns:
        The S detections that are looked at in slots, by class, image and falling score:
        rows: [S] row of the detection.
        ranks: [S] its place in its class and image.
        by_score: [S] slots, class by class, best first.
        offsets: [classes + 1] where the classes begin in all of these.
        kinds: [A, T, S] uint8 FOUND, DUPLICATE, FALSE or LEFT_OUT as in `Details`.
        targets: [A, T, S] row of the object or -1; None unless asked for.

    Raises:
        ValueError: an argument is out of range.
    """
    images = len(truth.image_ids)
    return _eval.match(
        object_cells=truth.labels * images + truth.images,
        object_boxes=truth.boxes,
        object_areas=truth.areas,
        ignored=np.ascontiguousarray(ignored),
        region=np.ascontiguousarray(region),
        unfindable=np.zeros(len(truth.ids), bool) if unfindable is None else unfindable,
        cells=found.labels * images + found.images,
        boxes=found.boxes,
        scores=found.scores,
        outside=np.ascontiguousarray(outside),
        classes=len(truth.class_ids),
        images=images,
        thresholds=thresholds,
        absorb=absorb,
        drop_outside=drop_outside,
        most=most,
        targets=targets,
        threads=usable(threads),
    )


def match_image(
    boxes: ArrayLike,
    scores: ArrayLike,
    objects: ArrayLike,
    regions: ArrayLike = (),
    *,
    threshold: float = 0.5,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Match the detections of one image and class with its objects, as `match` does.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels.
        scores: [K]; the lower index comes first among equal ones.
        objects: [N, 4] like the boxes.
        regions: [R, 4] likewise: crowds, and what else counts neither way. A detection that takes
            no object is left out if a region has at least `threshold` of its area.
        threshold: in (0, 1].

    Returns:
        kinds: [K] FOUND, DUPLICATE, FALSE or LEFT_OUT as in `Details`.
        targets: [K] index of the object that was found or, by a duplicate, overlapped most; or -1.

    Raises:
        ValueError: for a threshold out of range.
    """
    found, wanted, excluded = (_sized(x) for x in (boxes, objects, regions))
    ignored = np.arange(len(wanted) + len(excluded)) >= len(wanted)
    matches = _eval.match(
        object_cells=np.zeros(len(ignored), np.int64),
        object_boxes=np.concatenate([wanted, excluded]),
        object_areas=np.zeros(len(ignored)),
        ignored=ignored[None],
        region=ignored[None],
        unfindable=np.zeros(len(ignored), bool),
        cells=np.zeros(len(found), np.int64),
        boxes=found,
        scores=np.asarray(scores, np.float64),
        outside=np.zeros((1, len(found)), bool),
        classes=1,
        images=1,
        thresholds=[threshold],
        absorb=[],
        drop_outside=False,
        most=max(1, len(found)),
        targets=True,
        threads=1,
    )
    kinds, targets = np.zeros(len(found), np.uint8), np.zeros(len(found), np.int64)
    kinds[matches.rows] = matches.kinds[0, 0]
    targets[matches.rows] = matches.targets[0, 0]
    return kinds, np.where(targets < len(wanted), targets, -1)


def _sized(boxes: ArrayLike) -> NDArray[np.float64]:
    """x1 y1 x2 y2 to x y w h."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def precision_and_recall(
    matches: _eval.Matches,
    truth: GroundTruth,
    ignored: Mask,
    limits: Sequence[int],
    threads: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCO's curves; -1 where no object counts.

    Args:
        matches: of `match`, as are `truth`, `ignored` and `threads`.
        truth: likewise.
        ignored: likewise.
        limits: M numbers of best detections of a class and an image that are counted.
        threads: likewise.

    Returns:
        precision: [M, A, T, C, 101] at `RECALL`, the best at that recall or more.
        recall: [M, A, T, C] the largest.
    """
    return _eval.accumulate(
        matches,
        positives=count_objects(truth, ignored),
        limits=limits,
        points=RECALL,
        threads=usable(threads),
    )


def count_objects(truth: GroundTruth, ignored: Mask) -> NDArray[np.int64]:
    """[A, C] objects that count."""
    classes = len(truth.class_ids)
    counts = [np.bincount(truth.labels[~row], minlength=classes) for row in ignored]
    return np.array(counts, np.int64).reshape(len(ignored), classes)


def usable(threads: int | None) -> int:
    """A number of threads; None: one for every processor that this process may use."""
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads must be positive, got {threads}")
    return threads
