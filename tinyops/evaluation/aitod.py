"""AI-TOD, its second version, and DroneSwarms.

As COCO (`coco.py`), with other sizes: verytiny up to 8^2 square pixels, tiny to 16^2, small to
32^2, medium above; and of the best 1, 100 and 1500 detections of an image and class.

Besides, optimal LRP at IoU 0.50 over all sizes and 1500 detections. Of the detections down to some
score, LRP is

    (sum of (1 - IoU) / (1 - 0.5) over those that found an object + false alarms + missed objects)
    / (found + false alarms + missed);

oLRP is the least over all scores, opt_thr the score where it is. There, oLRP_Loc is the mean of
1 - IoU, oLRP_FP the share of false alarms, oLRP_FN that of missed objects. A class without a find
has oLRP and oLRP_FN 1; its other parts do not exist (None) and the means over classes skip them.

AP_25 is always -1: the evaluator prints it, but does not match at 0.25.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.average_precision import (
    COCO_THRESHOLDS,
    Evaluation,
    Rules,
    read_evaluation,
    rows,
)
from tinyops.evaluation.details import FOUND, LEFT_OUT, Details
from tinyops.evaluation.matcher import Mask, count_objects
from tinyops.evaluation.tables import Source

AREAS = {
    "all": (0, 1e10),
    "verytiny": (0, 8**2),
    "tiny": (8**2, 16**2),
    "small": (16**2, 32**2),
    "medium": (32**2, 1e10),
}
RULES = Rules(AREAS, COCO_THRESHOLDS, (1, 100, 1500), band="all", limit=1500)
_LRP_IOU = 0.5
_LRP = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")


def evaluate(
    ground_truth: Source,
    detections: Source,
    *,
    compatible: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """AP and AR by band@detections and threshold; the nineteen numbers in `stats`; AP and oLRP of
    every class by its id in `per_class`.
    """
    evaluation = read_evaluation(ground_truth, detections, RULES, compatible, threads)
    result = evaluation.tables()
    ap, ar = result["AP"], result["AR"]
    classes = _per_class(evaluation)
    bands = {"vt": "verytiny", "t": "tiny", "s": "small", "m": "medium"}
    result["stats"] = {
        "AP": ap["all@1500"]["mean"],
        "AP_25": -1.0,
        "AP_50": ap["all@1500"]["0.50"],
        "AP_75": ap["all@1500"]["0.75"],
        **{f"AP_{short}": ap[f"{band}@1500"]["mean"] for short, band in bands.items()},
        **{f"AR@{limit}": ar[f"all@{limit}"]["mean"] for limit in RULES.max_detections},
        **{f"AR_{short}": ar[f"{band}@1500"]["mean"] for short, band in bands.items()},
        **{name: _mean([row[name] for row in classes.values()]) for name in _LRP},
    }
    result["per_class"] = classes
    return result


def table(result: dict[str, Any]) -> list[dict[str, float | None]]:
    """One row, in percent."""
    return rows({k: v for k, v in result["stats"].items() if k != "AP_25"})


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
    return evaluation.details("aitod", band, threshold)


def _mean(values: list[float | None]) -> float | None:
    """Over the classes that have one; -1 where no class has an object."""
    counted = [x for x in values if x is not None and x != -1]
    if not counted:
        return None if None in values else -1.0
    return float(np.mean(counted))


def _per_class(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """AP and oLRP of the classes by their ids; -1 where there is no object."""
    truth, found = evaluation.truth, evaluation.found
    rules = replace(RULES, areas={"all": AREAS["all"]}, thresholds=(_LRP_IOU,))
    one = replace(evaluation, rules=rules)
    matches = one.match(targets=True)
    order = matches.by_score
    kinds, targets = matches.kinds[0, 0][order], matches.targets[0, 0][order]
    is_found = kinds == FOUND
    found_rows = matches.rows[order]
    loss = np.zeros(len(order))
    loss[is_found] = 1 - _iou(found.boxes[found_rows[is_found]], truth.boxes[targets[is_found]])
    is_false = ~is_found & (kinds != LEFT_OUT)
    ap = evaluation.ap[-1, 0]  # [T, C] of the largest limit and all sizes
    result: dict[str, dict[str, float | None]] = {}
    for c, objects in enumerate(count_objects(truth, one.ignored)[0]):
        part = slice(matches.offsets[c], matches.offsets[c + 1])
        scores = found.scores[found_rows[part]]
        lrp = _optimal_lrp(is_found[part], is_false[part], loss[part], scores, int(objects))
        result[str(truth.class_ids[c])] = {"AP": float(ap[:, c].mean()), **lrp}
    return result


def _optimal_lrp(
    is_found: Mask,
    is_false: Mask,
    loss: NDArray[np.float64],
    scores: NDArray[np.float64],
    objects: int,
) -> dict[str, float | None]:
    """Of the detections of a class, best first; `loss` is 1 - IoU of those that found an object."""
    if objects == 0:
        return dict.fromkeys((*_LRP, "opt_thr"), -1.0)
    if not is_found.any():
        return {"oLRP": 1.0, "oLRP_Loc": None, "oLRP_FP": None, "oLRP_FN": 1.0, "opt_thr": None}
    tp, fp, total = is_found.cumsum(), is_false.cumsum(), loss.cumsum()
    lrp = (total / (1 - _LRP_IOU) + fp + objects - tp) / (fp + objects)
    k = int(lrp.argmin())  # before the first find, if that is no gain: then there is no part
    return {
        "oLRP": float(lrp[k]),
        "oLRP_Loc": float(total[k] / tp[k]) if tp[k] else None,
        "oLRP_FP": float(fp[k] / (tp[k] + fp[k])) if tp[k] + fp[k] else None,
        "oLRP_FN": float((objects - tp[k]) / objects),
        "opt_thr": float(scores[k]),
    }


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row, of x y w h."""
    size = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = size.prod(1)
    return common / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - common)
