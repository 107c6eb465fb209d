"""SODA-D.

As COCO (`coco.py`), with other sizes and limits: Small is up to 32^2 square pixels and divided into
extremely small (eS, to 12^2), relatively small (rS, to 20^2) and generally small (gS); Normal is
32^2 to 2000. AP, AP_50 and AP_75 are those of Small at 100 detections, not of all objects. Objects
with `ignore` are left out by plain IoU and take one detection each; `iscrowd` is not looked at.
"""

from typing import Any

from tinyops.evaluation.average_precision import COCO_THRESHOLDS, Evaluation, Rules, rows
from tinyops.evaluation.details import Details
from tinyops.evaluation.tables import Source, read_detections, read_ground_truth

AREAS = {
    "Small": (0, 1024),
    "eS": (0, 144),
    "rS": (144, 400),
    "gS": (400, 1024),
    "Normal": (1024, 2000),
}
RULES = Rules(AREAS, COCO_THRESHOLDS, (100, 300, 1000), band="Small", limit=100)


def evaluate(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """AP and AR by band@detections and threshold, and the numbers of the papers in `stats`."""
    result = _evaluation(ground_truth, detections, compatible, threads).tables()
    ap, ar = result["AP"], result["AR"]
    bands = ("eS", "rS", "gS", "Normal")
    result["stats"] = {
        "AP": ap["Small@100"]["mean"],
        "AP_50": ap["Small@100"]["0.50"],
        "AP_75": ap["Small@100"]["0.75"],
        **{f"AP_{band}": ap[f"{band}@100"]["mean"] for band in bands},
        **{f"AR@{limit}": ar[f"Small@{limit}"]["mean"] for limit in RULES.max_detections},
        **{f"AR_{band}@1000": ar[f"{band}@1000"]["mean"] for band in bands},
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
    band: str | None = None,
    threshold: float | None = None,
) -> Details:
    """At IoU 0.50 and band Small by default."""
    evaluation = _evaluation(ground_truth, detections, compatible, threads)
    return evaluation.details("soda-d", band, threshold)


def _evaluation(
    ground_truth: Source, detections: Source, compatible: bool, threads: int | None
) -> Evaluation:
    truth = read_ground_truth(ground_truth)
    found = read_detections(detections, truth)
    none = truth.ignore & False
    return Evaluation(truth, found, RULES, truth.ignore, none, (), compatible, threads)
