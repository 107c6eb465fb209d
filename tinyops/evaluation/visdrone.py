"""VisDrone-DET by its official toolkit (version 1.0.4). All numbers are percent.

1. In an image with ignored regions (category 0), objects and detections of which half or more lies
   in them are taken out. Their positions and sizes are rounded, and at least 1.
2. Of what is left, the first 1, 10, 100 or 500 detections of an image count, in the order of the
   file and over all categories. Each number is matched anew.
3. For each class 1 to 10 and IoU 0.50:0.05:0.95, objects of score 0 are regions, as COCO's
   `iscrowd`. Categories 0 and 11 (others) count nowhere.
4. Recall is over all objects of the class, those of score 0 included. AP is the whole area under
   the precision made monotone, at 500 detections; AR is the largest recall.

Quirk of the toolkit under `compatible`: in `summary`, a class counts once for every image with an
object of it, so that frequent classes weigh more. `unweighted_summary` counts every class that
there is once, as does `summary` otherwise. Where no class has an object, both are -1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops import _eval
from tinyops.evaluation.average_precision import COCO_THRESHOLDS, outcomes, rows
from tinyops.evaluation.curves import area, interpolate
from tinyops.evaluation.details import FOUND, LEFT_OUT, Details
from tinyops.evaluation.matcher import RECALL, match
from tinyops.evaluation.tables import Detections, GroundTruth, named
from tinyops.evaluation.visdrone_rows import Scene, read_scenes

CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
MAX_DETECTIONS = (1, 10, 100, 500)


def evaluate(
    ground_truth: Any,
    detections: Any,
    *,
    compatible: bool = True,
    threads: int | None = None,
    images: Any = None,
) -> dict[str, Any]:
    """Measure as the toolkit does; for the arguments see `read_scenes` and `match`.

    Returns:
        summary: AP, AP50, AP75, AR1, AR10, AR100, AR500.
        unweighted_summary: likewise.
        AP: by class and IoU, 0 for a class without objects.
        AR: by class, IoU and number of detections.
        evalClass: classes, each as often as there are images with an object of it.
        kept_gt, kept_dt: for each image the rows that step 1 leaves.
    """
    scenes, kept = _read(ground_truth, detections, images)
    truth = _truth(scenes)
    ap = np.zeros((10, 10))
    ar = np.zeros((10, 10, len(MAX_DETECTIONS)))
    for m, limit in enumerate(MAX_DETECTIONS):
        matches = _match(truth, _found(scenes, limit), COCO_THRESHOLDS, limit, threads)
        for t in range(10):
            for c, (recall, precision) in enumerate(_curves(matches, truth, t)):
                ar[c, t, m] = 100 * recall.max(initial=0)
                ap[c, t] = 100 * area(recall, precision)  # the last limit's stays
    present = np.zeros((len(scenes), 10), np.int64)
    present[truth.images, truth.labels] = 1
    frequency = present.sum(0)
    unweighted = _summary(ap, ar, frequency.clip(max=1))
    return {
        "summary": _summary(ap, ar, frequency) if compatible else unweighted,
        "unweighted_summary": unweighted,
        "AP": ap.tolist(),
        "AR": ar.tolist(),
        "evalClass": np.repeat(np.arange(1, 11), frequency).tolist(),
        "kept_gt": [a.tolist() for a, _ in kept],
        "kept_dt": [b.tolist() for _, b in kept],
    }


def table(result: dict[str, Any]) -> list[dict[str, float | None]]:
    """One row, in percent."""
    return rows({k: v / 100 for k, v in result["summary"].items()})


def details(
    ground_truth: Any,
    detections: Any,
    *,
    compatible: bool = True,
    threads: int | None = None,
    images: Any = None,
    threshold: float = 0.5,
) -> Details:
    """At IoU 0.50 and 500 detections by default, without what the first two steps take out.

    Raises:
        ValueError: the threshold is not in (0, 1].
    """
    scenes, _ = _read(ground_truth, detections, images)
    truth, limit = _truth(scenes), MAX_DETECTIONS[-1]
    found = _found(scenes, limit)
    matches = _match(truth, found, (threshold,), limit, threads, targets=True)
    curves = _curves(matches, truth, 0)
    precision = [interpolate(*curve) for curve in curves]
    ap = [area(*curve) for curve in curves]
    there = np.bincount(truth.labels, minlength=10) > 0
    return Details(
        protocol="visdrone",
        setting=f"IoU {threshold:.2f}, the first {limit} detections of an image",
        threshold=threshold,
        band="all",
        max_detections=limit,
        bands={"all": (0, 1e5)},
        recall=RECALL,
        precision=np.where(there[:, None], precision, -1.0)[None],
        ap=np.where(there, ap, -1.0)[None],
        **outcomes(truth, found, truth.ignore[None], matches, 0),
    )


def _read(
    ground_truth: Any, detections: Any, images: Any
) -> tuple[list[Scene], list[tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """The images after step 1, and the rows that it left."""
    scenes, kept = read_scenes(ground_truth, detections, images), []
    for k, scene in enumerate(scenes):
        with named(f"image {scene.name}", ""):  # memory for its pixels
            objects, found = _outside_regions(scene)
        kept.append((objects, found))
        scenes[k] = scene._replace(truth=scene.truth[objects], found=scene.found[found])
    return scenes, kept


def _summary(
    ap: NDArray[np.float64], ar: NDArray[np.float64], weights: NDArray[np.int64]
) -> dict[str, float]:
    names = ("AP", "AP50", "AP75", *(f"AR{limit}" for limit in MAX_DETECTIONS))
    if not weights.any():
        return dict.fromkeys(names, -1.0)
    by_class = (ap.mean(1), ap[:, 0], ap[:, 5], *np.moveaxis(ar.mean(1), 1, 0))
    return {k: float(np.average(v, weights=weights)) for k, v in zip(names, by_class, strict=True)}


def _outside_regions(scene: Scene) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the objects and of the detections that half or more of is outside the regions."""
    regions = scene.truth[scene.truth[:, 5] == 0]
    if not len(regions) or scene.size is None:
        return np.arange(len(scene.truth)), np.arange(len(scene.found))
    width, height = scene.size
    inside = np.zeros((height, width), np.int32)
    for x, y, w, h in regions[:, :4].clip(1, 2**31).astype(np.int64).tolist():
        inside[y - 1 : y + h, x - 1 : x + w] = 1  # pixels x to x + w, counted from 1
    total = inside.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)

    def kept(boxes: NDArray[np.float64]) -> NDArray[np.intp]:
        x, y, w, h = np.floor(boxes[:, :4] + 0.5).clip(1, 2**31).astype(np.int64).T
        x, y = x.clip(max=width), y.clip(max=height)
        right, bottom = (x + w).clip(max=width), (y + h).clip(max=height)
        x, y, right, bottom = x - 1, y - 1, right - 1, bottom - 1
        common = total[y, x] + total[bottom, right] - total[y, right] - total[bottom, x]
        return np.flatnonzero(common / (w * h) < 0.5)

    return kept(scene.truth), kept(scene.found)


def _columns(parts: Sequence[NDArray[np.float64]]) -> tuple[NDArray[Any], ...]:
    """Image, class, box and score of the rows of ten classes."""
    rows = np.concatenate([*parts, np.zeros((0, 6))])
    images = np.repeat(np.arange(len(parts)), [len(x) for x in parts])
    mine = (rows[:, 5] >= 1) & (rows[:, 5] <= 10)
    labels = rows[mine, 5].astype(np.int64) - 1
    boxes = np.ascontiguousarray(rows[mine, :4])
    return images[mine], labels, boxes, np.ascontiguousarray(rows[mine, 4])


def _truth(scenes: list[Scene]) -> GroundTruth:
    images, labels, boxes, scores = _columns([scene.truth for scene in scenes])
    areas = boxes[:, 2] * boxes[:, 3]
    no = np.zeros(len(labels), bool)
    return GroundTruth(
        image_ids=np.arange(len(scenes)),
        image_names=[scene.name for scene in scenes],
        class_ids=np.arange(1, 11),
        classes=list(CLASSES),
        images=images,
        labels=labels,
        boxes=boxes,
        areas=areas,
        sizes=np.sqrt(areas),
        crowd=no,
        ignore=scores == 0,
        uncertain=no,
        ids=np.arange(1, len(labels) + 1),
    )


def _found(scenes: list[Scene], limit: int) -> Detections:
    return Detections(*_columns([scene.found[:limit] for scene in scenes]))


def _match(
    truth: GroundTruth,
    found: Detections,
    thresholds: Sequence[float],
    limit: int,
    threads: int | None,
    targets: bool = False,
) -> _eval.Matches:
    ignored = truth.ignore[None]
    return match(
        truth,
        found,
        ignored=ignored,
        region=ignored,
        outside=np.zeros((1, len(found.scores)), bool),
        thresholds=thresholds,
        most=limit,
        targets=targets,
        threads=threads,
    )


def _curves(
    matches: _eval.Matches, truth: GroundTruth, t: int
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Recall and precision of each class after every detection."""
    objects = np.bincount(truth.labels, minlength=10)
    kinds = np.split(matches.kinds[0, t][matches.by_score], matches.offsets[1:-1])
    curves = []
    for c in range(10):
        tp = (kinds[c] == FOUND).cumsum()
        counted = (kinds[c] != LEFT_OUT).cumsum()
        curves.append((tp / max(1, objects[c]), tp / np.maximum(1, counted)))
    return curves
