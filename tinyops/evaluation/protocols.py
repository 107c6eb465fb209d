"""Every benchmark by its own rules."""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from tinyops.evaluation import (
    aitod,
    coco,
    soda,
    tinyperson,
    tt100k,
    visdrone,
    visdrone_coco,
    widerface,
)
from tinyops.evaluation.details import Details
from tinyops.evaluation.matcher import usable

# A file for each states its rules. DroneSwarms has one class and is counted as AI-TOD.
PROTOCOLS: Mapping[str, ModuleType] = {
    "tinyperson": tinyperson,
    "coco": coco,
    "aitod": aitod,
    "droneswarms": aitod,
    "visdrone": visdrone,
    "visdrone-coco": visdrone_coco,
    "soda-d": soda,
    "tt100k": tt100k,
    "widerface": widerface,
}


def evaluate(
    protocol: str,
    ground_truth: Any,
    detections: Any,
    *,
    compatible: bool = True,
    threads: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure detections.

    Args:
        protocol: a key of `PROTOCOLS`; its file says what is counted.
        ground_truth: COCO json, a path or its content; for other inputs see the protocol's file.
        detections: COCO results likewise.
        compatible: reproduce quirks of the original evaluator, as published tables have them; the
            protocol's file names them. False: the value without them.
        threads: of the matching; None: one for every processor. The result does not depend on it.
        options: of the protocol, such as `max_detections` of tinyperson.

    Returns:
        Numbers, texts, lists and dicts. With AP, `result["AP"]["tiny@200"]["0.50"]` is that of the
        band "tiny" at 200 detections and IoU 0.50, "mean" that over the IoU. Without detections it
        is 0, without objects that count -1.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no such protocol, or an input is not what it should be: file or
            argument, field and index.
        TypeError: the protocol has no such option.
    """
    return _module(protocol).evaluate(
        ground_truth, detections, compatible=compatible, threads=usable(threads), **options
    )


def table(protocol: str, result: Mapping[str, Any]) -> list[dict[str, float | str | None]]:
    """Rows of the table that papers print, in percent; None where there is nothing to measure."""
    return _module(protocol).table(result)


def details(
    protocol: str,
    ground_truth: Any,
    detections: Any,
    *,
    compatible: bool = True,
    threads: int | None = None,
    **options: Any,
) -> Details:
    """What lies behind the headline; arguments as of `evaluate`.

    Protocols with size bands also take a `band`, and those with several thresholds a `threshold`.
    """
    module = _module(protocol)
    found = module.details(
        ground_truth, detections, compatible=compatible, threads=usable(threads), **options
    )
    return replace(found, protocol=protocol)


def _module(protocol: str) -> ModuleType:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]
