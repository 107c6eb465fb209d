"""COCO's average precision, with the sizes, thresholds and flags of each benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops import _eval
from tinyops.evaluation.details import (
    FOUND,
    LEFT_OUT,
    MISSED,
    Details,
    mean_of_classes,
)
from tinyops.evaluation.matcher import RECALL, Mask, match, precision_and_recall
from tinyops.evaluation.tables import (
    Detections,
    GroundTruth,
    Source,
    read_detections,
    read_ground_truth,
)

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True)
class Rules:
    """What differs between the benchmarks that count as COCO does.

    Attributes:
        areas: band -> limits in square pixels, both included; of an object its annotated area.
        thresholds: least overlaps of a match.
        max_detections: best detections of a class and an image that are counted, rising.
        band: the headline's.
        limit: the headline's, of `max_detections`.
        threshold: the headline's.
    """

    areas: Mapping[str, tuple[float, float]]
    thresholds: Sequence[float]
    max_detections: Sequence[int]
    band: str
    limit: int
    threshold: float = 0.5


@dataclass(frozen=True)
class Evaluation:
    """Detections counted by rules.

    Attributes:
        truth: N objects.
        found: the detections.
        rules: by which.
        ignore: [N] objects that never count.
        region: [N] those of them that take any number of detections.
        absorb: see `match`.
        compatible: never find an object of id 0. pycocotools and all that derives from it write
            down the id of the object that a detection found, and take 0 for none.
        threads: see `match`.
    """

    truth: GroundTruth
    found: Detections
    rules: Rules
    ignore: Mask
    region: Mask
    absorb: Sequence[float] = ()
    compatible: bool = True
    threads: int | None = None

    @cached_property
    def ignored(self) -> Mask:
        """[A, N] objects that do not count in the bands."""
        return self.ignore | _outside(self.truth.areas, self.rules)

    @cached_property
    def matches(self) -> _eval.Matches:
        return self.match()

    def match(self, targets: bool = False) -> _eval.Matches:
        return match(
            self.truth,
            self.found,
            ignored=self.ignored,
            region=np.broadcast_to(self.region, self.ignored.shape),
            outside=_outside(self.found.areas, self.rules),
            thresholds=self.rules.thresholds,
            most=max(self.rules.max_detections),
            absorb=self.absorb,
            unfindable=(self.truth.ids == 0) & self.compatible,
            targets=targets,
            threads=self.threads,
        )

    @cached_property
    def curves(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """precision [M, A, T, C, 101] and recall [M, A, T, C]."""
        limits = self.rules.max_detections
        return precision_and_recall(self.matches, self.truth, self.ignored, limits, self.threads)

    @cached_property
    def ap(self) -> NDArray[np.float64]:
        """[M, A, T, C], or -1 where no object counts."""
        return self.curves[0].mean(-1)

    def tables(self) -> dict[str, Any]:
        """AP and AR by band@detections and by threshold, "mean" being that over the thresholds."""
        rules = self.rules
        return {
            "AP": _table(self.ap, rules),
            "AR": _table(self.curves[1], rules),
            "areaRng": {band: [float(x) for x in limits] for band, limits in rules.areas.items()},
            "maxDets": list(rules.max_detections),
        }

    def details(self, protocol: str, band: str | None, threshold: float | None) -> Details:
        """Everything at one band and threshold, by default the headline's.

        Raises:
            ValueError: there is no such band, or no such threshold.
        """
        band = self.rules.band if band is None else band
        threshold = self.rules.threshold if threshold is None else threshold
        if band not in self.rules.areas:
            raise ValueError(f"band must be one of {', '.join(self.rules.areas)}, got {band!r}")
        if threshold not in self.rules.thresholds:
            raise ValueError(
                f"threshold must be one of {list(self.rules.thresholds)}, got {threshold}"
            )
        t = list(self.rules.thresholds).index(threshold)
        most = self.rules.limit
        rules = replace(self.rules, thresholds=(threshold,), max_detections=(most,))
        one = replace(self, rules=rules, absorb=self.absorb[t : t + 1])
        matches, a = one.match(targets=True), list(rules.areas).index(band)
        curves, _ = precision_and_recall(matches, self.truth, one.ignored, (most,), self.threads)
        return Details(
            protocol=protocol,
            setting=f"IoU {threshold:.2f}, band {band}, at most {most} detections per image "
            "and class",
            threshold=threshold,
            band=band,
            max_detections=most,
            bands={k: (low**0.5, high**0.5) for k, (low, high) in rules.areas.items()},
            recall=RECALL,
            precision=curves[0, :, 0],
            ap=curves[0, :, 0].mean(-1),
            **outcomes(self.truth, self.found, one.ignored, matches, a),
        )


def read_evaluation(
    ground_truth: Source,
    detections: Source,
    rules: Rules,
    compatible: bool,
    threads: int | None,
) -> Evaluation:
    """With COCO's flags: `iscrowd` boxes are regions, `ignore` is not looked at.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not what it should be: file or argument, field and index.
    """
    truth = read_ground_truth(ground_truth)
    found = read_detections(detections, truth)
    return Evaluation(truth, found, rules, truth.crowd, truth.crowd, (), compatible, threads)


def outcomes(
    truth: GroundTruth, found: Detections, ignored: Mask, matches: _eval.Matches, a: int
) -> dict[str, Any]:
    """The fields of `Details` about images, classes, detections and objects, in range `a`."""
    kinds = np.full(len(found.scores), LEFT_OUT, np.uint8)
    targets = np.full(len(kinds), -1)
    kinds[matches.rows] = matches.kinds[a, 0]
    targets[matches.rows] = matches.targets[a, 0]
    objects = np.where(ignored[a], LEFT_OUT, MISSED).astype(np.uint8)
    objects[targets[kinds == FOUND]] = FOUND
    order = np.lexsort((-found.scores, found.labels))
    return {
        "classes": truth.classes,
        "image_ids": truth.image_ids,
        "image_names": truth.image_names,
        "images": found.images[order],
        "labels": found.labels[order],
        "boxes": _corners(found.boxes[order]),
        "scores": found.scores[order],
        "kinds": kinds[order],
        "targets": targets[order],
        "object_images": truth.images,
        "object_labels": truth.labels,
        "object_boxes": _corners(truth.boxes),
        "object_kinds": objects,
    }


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _outside(areas: NDArray[np.float64], rules: Rules) -> Mask:
    """[A, N] bands that an area is not in."""
    limits = np.array(list(rules.areas.values())).reshape(-1, 2, 1)
    return (areas < limits[:, 0]) | (areas > limits[:, 1])


def _table(values: NDArray[np.float64], rules: Rules) -> dict[str, dict[str, float]]:
    """Means over the classes [M, A, T, C] with something to find."""
    table = {}
    for m, limit in enumerate(rules.max_detections):
        for a, band in enumerate(rules.areas):
            means = mean_of_classes(values[m, a])
            row = {f"{t:.2f}": float(x) for t, x in zip(rules.thresholds, means, strict=True)}
            counted = values[m, a] > -1
            row["mean"] = float(values[m, a][counted].mean()) if counted.any() else -1.0
            table[f"{band}@{limit}"] = row
    return table


def rows(stats: Mapping[str, float | None]) -> list[dict[str, float | None]]:
    """One row of a table, in percent; None where there is nothing to measure."""
    return [{k: None if v is None or v < 0 else 100 * v for k, v in stats.items()}]
