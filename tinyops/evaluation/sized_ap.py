"""Average precision by object size, as TinyPerson counts it."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Limits of sqrt(area) in pixels, both included. TinyBenchmark's code starts at 1 px where the
# papers write 2.
TINYPERSON_BANDS: Mapping[str, tuple[float, float]] = {
    "all": (1, 1e5),
    "tiny": (1, 20),
    "tiny1": (1, 8),
    "tiny2": (8, 12),
    "tiny3": (12, 20),
    "small": (20, 32),
    "reasonable": (32, 1e5),
}


def sized_ap(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    bands: Mapping[str, tuple[float, float]] = TINYPERSON_BANDS,
    iou_thresholds: Sequence[float] = (0.25, 0.5, 0.75),
    max_detections: int = 200,
) -> dict[tuple[str, float], float]:
    """AP of every size band at every IoU threshold: 101 points, mean over classes.

    In a band, objects outside it and those marked `ignore`, `uncertain` or `iscrowd` are regions:
    a detection that lies in one by at least the threshold (intersection over the detection's area)
    and matches no object is left out, as is an unmatched detection whose size is outside the band.
    That is TinyBenchmark's AP, obtained from pycocotools by rewriting `iscrowd` for each band; it
    differs from TinyBenchmark for boxes that are `iscrowd` themselves and where the `area` field is
    not w * h. Objects are renumbered from 1, as pycocotools never matches an object of id 0.

    Args:
        ground_truth: COCO's `images`, `categories` and `annotations` (bbox x y w h in pixels).
            Without `area`, it is w * h.
        detections: COCO results: image_id, category_id, bbox x y w h, score.
        bands: name -> limits of sqrt(area) in pixels, both included.
        iou_thresholds: least overlaps of a match, in (0, 1].
        max_detections: best detections counted per image and class. TinyBenchmark takes 200, its
            successor TOV 1000, worth 1.5 AP: state the number with the result.

    Returns:
        (band, threshold) -> AP in 0..1. It is -1 where no object counts, and 0 where objects count
        but nothing was detected.

    Raises:
        ValueError: a band, a threshold or `max_detections` is out of range; an entry refers to an
            image or a category that does not exist; a detection is not finite.
    """
    _check_settings(bands, iou_thresholds, max_detections)
    objects = _objects(ground_truth)
    found = _index(ground_truth, _results(ground_truth, detections))
    result: dict[tuple[str, float], float] = {}
    for band, (low, high) in bands.items():
        rewritten = [{**o, "iscrowd": int(not _counts(o, low, high))} for o in objects]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its timings
            evaluation = COCOeval(_index(ground_truth, rewritten), found, "bbox")
            evaluation.params.iouThrs = np.asarray(iou_thresholds, np.float64)
            evaluation.params.areaRng = [[low**2, high**2]]
            evaluation.params.areaRngLbl = [band]
            evaluation.params.maxDets = [max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"]  # [T, 101, classes, 1, 1]
        for threshold, cells in zip(iou_thresholds, precision, strict=True):
            counted = cells[cells > -1]
            result[band, threshold] = float(counted.mean()) if counted.size else -1.0
    return result


def count_objects(
    ground_truth: Mapping[str, Any], bands: Mapping[str, tuple[float, float]] = TINYPERSON_BANDS
) -> dict[str, int]:
    """How many objects count in each band; arguments as in `sized_ap`."""
    objects = _objects(ground_truth)
    return {band: sum(_counts(o, *limits) for o in objects) for band, limits in bands.items()}


def _counts(entry: Mapping[str, Any], low: float, high: float) -> bool:
    return not entry["excluded"] and low**2 <= entry["area"] <= high**2


def _objects(ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    images, categories = _ids(ground_truth)
    objects = []
    for number, entry in enumerate(ground_truth["annotations"], 1):
        _check_ids(f"annotations[{number - 1}]", entry, images, categories)
        width, height = entry["bbox"][2:]
        flags = (entry.get(name, 0) for name in ("ignore", "uncertain", "iscrowd"))
        objects.append(
            {
                "id": number,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": entry["bbox"],
                "area": entry.get("area", width * height),
                "excluded": any(flags),
            }
        )
    return objects


def _results(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    images, categories = _ids(ground_truth)
    results = []
    for number, entry in enumerate(detections, 1):
        where = f"detections[{number - 1}]"
        _check_ids(where, entry, images, categories)
        box = [float(value) for value in entry["bbox"]]
        score = float(entry["score"])
        if not all(map(math.isfinite, (*box, score))):
            raise ValueError(f"{where} must be finite, got bbox {box}, score {score}")
        results.append(
            {
                "id": number,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
            }
        )
    return results


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """pycocotools' tables; its own loader of results fails on an empty list."""
    table = COCO()
    table.dataset = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        table.createIndex()
    return table


def _ids(ground_truth: Mapping[str, Any]) -> tuple[set[int], set[int]]:
    images = {image["id"] for image in ground_truth["images"]}
    return images, {category["id"] for category in ground_truth["categories"]}


def _check_ids(
    where: str, entry: Mapping[str, Any], images: set[int], categories: set[int]
) -> None:
    if entry["image_id"] not in images:
        raise ValueError(f"{where} names image_id {entry['image_id']}, which does not exist")
    if entry["category_id"] not in categories:
        raise ValueError(f"{where} names category_id {entry['category_id']}, which does not exist")


def _check_settings(
    bands: Mapping[str, tuple[float, float]], iou_thresholds: Sequence[float], max_detections: int
) -> None:
    for band, (low, high) in bands.items():
        if not 0 <= low < high:
            raise ValueError(f"bands[{band!r}] must rise from 0 or more, got {(low, high)}")
    if not iou_thresholds or not all(0 < t <= 1 for t in iou_thresholds):
        raise ValueError(f"iou_thresholds must lie in (0, 1], got {tuple(iou_thresholds)}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be positive, got {max_detections}")
