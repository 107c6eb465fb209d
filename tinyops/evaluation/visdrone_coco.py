"""VisDrone as COCO json, as many papers measure it; not comparable with the official numbers.

COCO's AP and AR (`coco.py`) with COCO's sizes or AI-TOD's (SR-TOD, RFLA). The best 500 detections
of an image and class count, as many as in the official toolkit, where pycocotools takes 100. The
json should have the ten classes alone: without categories 0 (ignored region) and 11 (others), what
lies in ignored regions is background.
"""

from typing import Any, Literal

from tinyops.evaluation import aitod, coco
from tinyops.evaluation.average_precision import (
    COCO_THRESHOLDS,
    Evaluation,
    Rules,
    read_evaluation,
    rows,
)
from tinyops.evaluation.details import Details
from tinyops.evaluation.tables import Source

_AREAS = {"coco": coco.AREAS, "aitod": aitod.AREAS}


def evaluate(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
    areas: Literal["coco", "aitod"] = "coco",
    max_detections: int = 500,
) -> dict[str, Any]:
    """AP and AR by band@detections and threshold, and in `stats` those at all thresholds, of IoU
    0.50 and 0.75, and of each band.
    """
    evaluation = _evaluation(ground_truth, detections, compatible, threads, areas, max_detections)
    result = evaluation.tables()
    average, recall = result["AP"], result["AR"]
    whole = average[f"all@{max_detections}"]
    bands = [band for band in evaluation.rules.areas if band != "all"]
    result["stats"] = {
        "AP": whole["mean"],
        "AP_50": whole["0.50"],
        "AP_75": whole["0.75"],
        **{f"AP_{band}": average[f"{band}@{max_detections}"]["mean"] for band in bands},
        f"AR@{max_detections}": recall[f"all@{max_detections}"]["mean"],
    }
    return result


def table(result: dict[str, Any]) -> list[dict[str, float | None]]:
    """One row, in percent."""
    return rows(result["stats"])


def details(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
    areas: Literal["coco", "aitod"] = "coco",
    max_detections: int = 500,
    band: str | None = None,
    threshold: float | None = None,
) -> Details:
    """At IoU 0.50 and all sizes by default."""
    evaluation = _evaluation(ground_truth, detections, compatible, threads, areas, max_detections)
    return evaluation.details("visdrone-coco", band, threshold)


def _evaluation(
    ground_truth: Source,
    detections: Source,
    compatible: bool,
    threads: int | None,
    areas: str,
    max_detections: int,
) -> Evaluation:
    if areas not in _AREAS:
        raise ValueError(f"areas must be one of {', '.join(_AREAS)}, got {areas!r}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be positive, got {max_detections}")
    rules = Rules(_AREAS[areas], COCO_THRESHOLDS, (max_detections,), "all", max_detections)
    return read_evaluation(ground_truth, detections, rules, compatible, threads)
