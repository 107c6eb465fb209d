"""What lies behind a number: curves, and what became of every detection and object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What becomes of a detection (the first four) or of an object (FOUND, LEFT_OUT, MISSED).
FOUND, DUPLICATE, FALSE, LEFT_OUT, MISSED = range(5)


@dataclass(frozen=True)
class Details:
    """A protocol's result at one setting, by default its headline.

    B size bands, C classes, R recall points, K detections, N objects, I images.

    Attributes:
        protocol: its name, as `evaluate` takes it.
        setting: one line for people: overlap, size band, most detections.
        threshold: least overlap of a match.
        band: the size band that `kinds` and `object_kinds` refer to, a key of `bands`.
        max_detections: best detections counted per image and class.
        bands: name -> limits of sqrt(area) in pixels, in the order of the rows below.
        classes: names, in the order of the columns below.
        image_ids: [I] int64, ascending.
        image_names: I file names; "" where the ground truth has none.
        recall: [R] rising from 0 to 1.
        precision: [B, C, R] interpolated precision; -1 where no object counts.
        ap: [B, C]; -1 where no object counts.
        images: [K] int64, each an index into `image_ids`.
        labels: [K] int64, each an index into `classes`.
        boxes: [K, 4] x1 y1 x2 y2 in pixels.
        scores: [K], best first within a class.
        kinds: [K] uint8. FOUND an object; DUPLICATE: it overlaps enough of an object that a better
            one found; FALSE alarm; LEFT_OUT: counts neither way (in a region, of another size, or
            beyond `max_detections`).
        targets: [K] int64 row of the object that was found, or that a duplicate overlaps most; of
            a detection that is left out, the region it lies in; -1: none.
        object_images: [N] int64, like `images`.
        object_labels: [N] int64, like `labels`.
        object_boxes: [N, 4] like `boxes`.
        object_kinds: [N] uint8 FOUND, MISSED or LEFT_OUT (a region, or of another size).
    """

    protocol: str
    setting: str
    threshold: float
    band: str
    max_detections: int
    bands: Mapping[str, tuple[float, float]]
    classes: Sequence[str]
    image_ids: NDArray[np.int64]
    image_names: Sequence[str]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    ap: NDArray[np.float64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    kinds: NDArray[np.uint8]
    targets: NDArray[np.int64]
    object_images: NDArray[np.int64]
    object_labels: NDArray[np.int64]
    object_boxes: NDArray[np.float64]
    object_kinds: NDArray[np.uint8]


def mean_of_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the second axis of the entries above -1; -1 where there is none.

    Of `Details.precision` it gives the curve of every band, [B, R], of `Details.ap` the AP, [B].
    """
    counted = values > -1
    number = counted.sum(1)
    total = np.where(counted, values, 0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), -1.0)
