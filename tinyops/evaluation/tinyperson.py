"""TinyPerson: average precision and miss rate, as TinyBenchmark counts them.

AP: COCO's (`coco.py`) at IoU 0.25, 0.50 and 0.75, by size. Limits of sqrt(area), included; the code
begins at 1 px where the papers write 2. The best 200 detections of an image and class count in
TinyBenchmark and SSPNet, 1000 in TOV, worth 1.5 AP. Objects that are `ignore`, `uncertain`,
`iscrowd` or of another size do not count. A detection that matches nothing goes to the ignored
object of largest share o / (1 + o) * (1 + A / a), if that is at least the threshold: o is their
overlap, A the object's annotated area, a the detection's w * h. Without `iscrowd`, and where A is
w * h, that is the share of the detection inside the object.

Miss rate: one over each of six sizes, from 2 px. Objects that are `ignore`, `uncertain` or of
another size are regions; `iscrowd` is not looked at. The best 1000 detections of an image and class
count, less those whose sqrt(w * h) is not in [low / 1.25, high * 1.25). One that matches nothing is
left out if the share above exceeds 0.5 at any threshold; o is over the detection's area already, so
that a large region does this to small detections that merely touch it. MR is the geometric mean of
1 - recall at nine rates of false alarms per image between 0.01 and 1, over all images of the json.

Quirks of the original under `compatible`:
- a detection that finds the object of id 0 is a false alarm (released files begin at 0);
- where the first detections of a class have more false alarms per image than a point, the recall of
  all detections is read there, through the index -1. Otherwise it is 0 there.
`MR_without_index_wrap` has the second value in any case.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.average_precision import Evaluation, Rules
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, Details, mean_of_classes
from tinyops.evaluation.matcher import RECALL, count_objects, match
from tinyops.evaluation.tables import (
    Detections,
    GroundTruth,
    Source,
    read_detections,
    read_ground_truth,
)

# Limits of sqrt(area) in pixels, both included.
BANDS = {
    "all": (1, 1e5),
    "tiny": (1, 20),
    "tiny1": (1, 8),
    "tiny2": (8, 12),
    "tiny3": (12, 20),
    "small": (20, 32),
    "reasonable": (32, 1e5),
}
THRESHOLDS = (0.25, 0.5, 0.75)
MISS_RATE_BANDS = {
    "tiny1": (2, 8),
    "tiny2": (8, 12),
    "tiny3": (12, 20),
    "tiny": (2, 20),
    "small": (20, 32),
    "All": (-1, 1e10),
}
# 0.01 to 1 in nine steps of equal ratio, by the original's arithmetic: 0.1 is slightly more.
FPPI = np.exp(np.arange(np.log(0.01), 1e-9, -np.log(0.01) / 8))
_EXPAND = 1.25
_DROPPED = 255


def evaluate(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
    max_detections: int = 200,
    flags: bool = True,
) -> dict[str, Any]:
    """AP and AR by band@detections and threshold; under "MR" for each size its miss rates; of a
    single class the curve behind the headline.

    Args:
        ground_truth: COCO json with TinyPerson's fields, a file or its content.
        detections: COCO results.
        compatible: see above.
        threads: see `match`.
        max_detections: of the AP, 200 or 1000 in the literature.
        flags: False: of the AP, `ignore` and `uncertain` are not looked at, and there is no share:
            COCO with these sizes and thresholds.
    """
    truth = read_ground_truth(ground_truth)
    found = read_detections(detections, truth)
    rules = _rules(BANDS, THRESHOLDS, max_detections)
    evaluation = _evaluation(truth, found, rules, compatible, threads, flags)
    result = evaluation.tables()
    result["iouThrs"] = list(THRESHOLDS)
    if len(truth.classes) == 1:
        result |= _headline_curve(evaluation)
    result["MR"] = _miss_rates(truth, found, compatible, threads)
    return result


def table(result: dict[str, Any]) -> list[dict[str, float | str | None]]:
    """A row of AP and one of MR, in percent."""
    limit = result["maxDets"][-1]
    columns = [("0.50", band) for band in ("tiny1", "tiny2", "tiny3", "tiny", "small")]
    columns += [("0.25", "tiny"), ("0.75", "tiny")]
    table: list[dict[str, float | str | None]] = []
    for name in ("AP", "MR"):
        row: dict[str, float | str | None] = {"": name}
        for t, band in columns:
            value = result["AP"][f"{band}@{limit}"][t]
            if name == "MR":
                value = result["MR"][band]["MR"][t]
            row[f"{band} {t[2:]}"] = None if value < 0 else 100 * value
        table.append(row)
    return table


def sized_ap(
    ground_truth: Source,
    detections: Source,
    *,
    bands: Mapping[str, tuple[float, float]] = BANDS,
    thresholds: Sequence[float] = THRESHOLDS,
    max_detections: int = 200,
    threads: int | None = None,
) -> dict[tuple[str, float], float]:
    """AP with other sizes and thresholds, without the quirks.

    Args:
        ground_truth: as of `evaluate`, as is what follows unless stated.
        detections: likewise.
        bands: name -> limits of sqrt(area) in pixels, both included.
        thresholds: least overlaps of a match, in (0, 1].
        max_detections: best detections counted per image and class.
        threads: likewise.

    Returns:
        (band, threshold) -> AP in 0..1, or -1 where no object counts.

    Raises:
        ValueError: as `evaluate`, or a band, a threshold or `max_detections` is out of range.
    """
    for band, (low, high) in bands.items():
        if not 0 <= low < high:
            raise ValueError(f"bands[{band!r}] must rise from 0 or more, got {(low, high)}")
    if not thresholds or not all(0 < t <= 1 for t in thresholds):
        raise ValueError(f"thresholds must be in (0, 1], got {tuple(thresholds)}")
    truth = read_ground_truth(ground_truth)
    found = read_detections(detections, truth)
    rules = _rules(bands, thresholds, max_detections)
    ap = _evaluation(truth, found, rules, False, threads, True).ap[0]
    return {
        (band, t): float(mean_of_classes(ap[a, k][None])[0])
        for a, band in enumerate(bands)
        for k, t in enumerate(thresholds)
    }


def details(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
    max_detections: int = 200,
    flags: bool = True,
    band: str | None = None,
    threshold: float | None = None,
) -> Details:
    """Of the AP, at IoU 0.50 and band tiny by default."""
    truth = read_ground_truth(ground_truth)
    found = read_detections(detections, truth)
    rules = _rules(BANDS, THRESHOLDS, max_detections)
    evaluation = _evaluation(truth, found, rules, compatible, threads, flags)
    return evaluation.details("tinyperson", band, threshold)


def _rules(
    bands: Mapping[str, tuple[float, float]], thresholds: Sequence[float], max_detections: int
) -> Rules:
    if max_detections < 1:
        raise ValueError(f"max_detections must be positive, got {max_detections}")
    areas = {band: (low**2, high**2) for band, (low, high) in bands.items()}
    return Rules(areas, thresholds, (max_detections,), "tiny", max_detections)


def _evaluation(
    truth: GroundTruth,
    found: Detections,
    rules: Rules,
    compatible: bool,
    threads: int | None,
    flags: bool,
) -> Evaluation:
    """The AP of TinyBenchmark."""
    ignore = truth.crowd | truth.ignore | truth.uncertain if flags else truth.crowd
    absorb = rules.thresholds if flags else ()
    return Evaluation(truth, found, rules, ignore, truth.crowd, absorb, compatible, threads)


def _headline_curve(evaluation: Evaluation) -> dict[str, list[float]]:
    """Of a single class: precision, and the score down to which detections are taken, by recall."""
    a, t = list(BANDS).index("tiny"), THRESHOLDS.index(0.5)
    precision = evaluation.curves[0][0, a, t, 0]
    scores = np.full(len(RECALL), -1.0)
    objects = count_objects(evaluation.truth, evaluation.ignored)[a, 0]
    if objects:
        matches = evaluation.matches
        recall = (matches.kinds[a, t][matches.by_score] == FOUND).cumsum() / objects
        best_first = evaluation.found.scores[matches.rows[matches.by_score]]
        scores = np.append(best_first, 0)[np.searchsorted(recall, RECALL)]
    return {
        "precision_at_101_recalls_IoU0.50_tiny": precision.tolist(),
        "score_at_101_recalls_IoU0.50_tiny": scores.tolist(),
    }


def _miss_rates(
    truth: GroundTruth, found: Detections, compatible: bool, threads: int | None
) -> dict[str, Any]:
    limits = np.array(list(MISS_RATE_BANDS.values())).reshape(-1, 2, 1)
    ignored = (truth.sizes < limits[:, 0]) | (truth.sizes > limits[:, 1])
    ignored |= truth.ignore | truth.uncertain
    sizes = np.sqrt(found.areas)
    outside = (sizes < limits[:, 0] / _EXPAND) | (sizes >= limits[:, 1] * _EXPAND)
    matches = match(
        truth,
        found,
        ignored=ignored,
        region=ignored,
        outside=outside,
        drop_outside=True,
        unfindable=(truth.ids == 0) & compatible,
        thresholds=THRESHOLDS,
        absorb=[float(np.nextafter(0.5, 1))] * len(THRESHOLDS),
        most=1000,
        threads=threads,
    )
    counts = count_objects(truth, ignored)
    result: dict[str, Any] = {"fppi": FPPI.tolist()}
    for a, (band, size) in enumerate(MISS_RATE_BANDS.items()):
        block: dict[str, Any] = {"size_range": [float(x) for x in size]}
        names = ("MR", "points_before_first_detection", "MR_without_index_wrap", "recall_at_fppi")
        block |= {name: {} for name in names}
        dropped = outside[a][matches.rows[matches.by_score]]
        for t, threshold in enumerate(THRESHOLDS):
            kinds = np.where(dropped, _DROPPED, matches.kinds[a, t][matches.by_score])
            parts = np.split(kinds, matches.offsets[1:-1])
            classes = [_recalls(parts[c], n, len(truth.image_ids)) for c, n in enumerate(counts[a])]
            before = [x for x, _, _ in classes]
            recalls = [x for _, _, x in classes]
            read = [x for _, x, _ in classes] if compatible else recalls
            values = (_rate(read), before, _rate(recalls), [x.tolist() for x in read])
            for name, value in zip(names, values, strict=True):
                block[name][f"{threshold:.2f}"] = value
        result[band] = block
    return result


def _rate(recalls: Sequence[NDArray[np.float64]]) -> float:
    counted = np.concatenate([*recalls, np.zeros(0)])
    counted = counted[counted > -1]
    with np.errstate(divide="ignore"):  # a recall of 1 makes it 0
        return float(np.exp(np.log(1 - counted).mean())) if counted.size else -1.0


def _recalls(
    kinds: NDArray[np.uint8], objects: int, images: int
) -> tuple[int | None, NDArray[np.float64], NDArray[np.float64]]:
    """How many points of FPPI lie before the first detection, and the recall at the points with and
    without the index -1 for those; -1 without objects."""
    if objects == 0:
        nothing = np.full(len(FPPI), -1.0)
        return None, nothing, nothing
    kinds = kinds[kinds != _DROPPED]
    recall = (kinds == FOUND).cumsum() / objects
    fppi = ((kinds == FALSE) | (kinds == DUPLICATE)).cumsum() / images
    last = np.searchsorted(fppi, FPPI, side="right") - 1
    before = int((last < 0).sum())
    if not len(kinds):
        recall = np.zeros(1)
    wrapped = recall[last]
    return before, wrapped, np.where(last < 0, 0, wrapped)
