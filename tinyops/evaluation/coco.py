"""MS COCO.

AP and AR over 101 recall points and IoU 0.50:0.05:0.95, of the best 1, 10 and 100 detections of an
image and class, for all objects, small (up to 32^2 square pixels), medium (to 96^2) and large ones;
limits included. The size of an object is its field `area`. `iscrowd` boxes are regions: they take
any number of detections, by the share of the detection's area inside; `ignore` is not looked at.

Quirk of pycocotools under `compatible`: a detection that finds the object of id 0 is a false alarm.
"""

from typing import Any

from tinyops.evaluation.average_precision import COCO_THRESHOLDS, Rules, read_evaluation, rows
from tinyops.evaluation.details import Details
from tinyops.evaluation.tables import Source

AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
RULES = Rules(AREAS, COCO_THRESHOLDS, (1, 10, 100), band="all", limit=100)


def evaluate(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """AP and AR by band@detections and threshold, and pycocotools' twelve numbers in `stats`."""
    result = read_evaluation(ground_truth, detections, RULES, compatible, threads).tables()
    ap, ar = result["AP"], result["AR"]
    result["stats"] = {
        "AP": ap["all@100"]["mean"],
        "AP_50": ap["all@100"]["0.50"],
        "AP_75": ap["all@100"]["0.75"],
        "AP_S": ap["small@100"]["mean"],
        "AP_M": ap["medium@100"]["mean"],
        "AP_L": ap["large@100"]["mean"],
        "AR@1": ar["all@1"]["mean"],
        "AR@10": ar["all@10"]["mean"],
        "AR@100": ar["all@100"]["mean"],
        "AR_S": ar["small@100"]["mean"],
        "AR_M": ar["medium@100"]["mean"],
        "AR_L": ar["large@100"]["mean"],
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
    """At IoU 0.50 and all sizes by default."""
    evaluation = read_evaluation(ground_truth, detections, RULES, compatible, threads)
    return evaluation.details("coco", band, threshold)
