"""Find anchors that fit the objects of a data set, and compare them with those of a detector.

k-means with the distance 1 - IoU. An anchor lies on the coarsest stride of at most half its size;
size / stride and height / width are what a detector's settings take.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tinyops._files import replacing
from tinyops.cli.data_source import run_tool
from tinyops.cli.data_stats import Anchors, coverage, table
from tinyops.data.anchors import (
    AnchorLevel,
    anchor_levels,
    best_overlaps,
    centred_overlaps,
    fit_anchors,
    place_anchors,
)
from tinyops.data.stats import object_sides

_PROGRAM = "tinyops data anchors"


@dataclass(kw_only=True)
class FitAnchors(Anchors):
    """The settings."""

    count: int = 9
    """Anchors to be found."""
    starts: int = 5
    """How often the search begins anew; the best result counts."""
    seed: int = 0
    """Of the starts."""
    out: Path | None = None
    """Json for the result."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data anchors <arguments>`; returns the exit code."""
    return run_tool(FitAnchors, run, _PROGRAM, __doc__, arguments)


def run(settings: FitAnchors) -> int:
    """The `data anchors` command.

    Raises:
        ValueError: an option or the data set is not what it should be.
        OSError: a file cannot be read or written.
    """
    present = anchor_levels(settings.strides, settings.scales, settings.ratios)
    data = settings.read()
    sides = object_sides(data)
    found = fit_anchors(sides, settings.count, seed=settings.seed, starts=settings.starts)
    placed = place_anchors(found, sorted(settings.strides))
    rows = [
        {
            "stride": level.stride,
            "width": width,
            "height": height,
            "size": (width * height) ** 0.5,
            "size / stride": (width * height) ** 0.5 / level.stride,
            "height / width": height / width,
        }
        for level in placed
        for width, height in level.sides.tolist()
    ]
    comparison = []
    for name, levels in (("found", placed), ("present", present)):
        fit = coverage(best_overlaps(data, levels))
        fit["mean IoU, centred"] = _mean_centred(sides, levels)
        comparison.append({"anchors": name, "shapes": sum(len(x.sides) for x in levels), **fit})
    console = Console()
    console.print(table(f"{settings.count} anchors for {len(sides):,} objects", rows))
    console.print(table("Best IoU of an object with an anchor", comparison))
    if settings.out is not None:
        result: dict[str, Any] = {"anchors": rows, "comparison": comparison, "seed": settings.seed}
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(settings.out) as temporary:
            temporary.write_text(json.dumps(result, indent=1))
    return 0


def _mean_centred(sides: Any, levels: Sequence[AnchorLevel]) -> float:
    """Of the IoU with the anchor of the best shape, wherever it is."""
    anchors = np.concatenate([level.sides for level in levels])
    parts = np.array_split(sides, 1 + len(sides) // 50_000)
    best = np.concatenate([centred_overlaps(part, anchors).max(1) for part in parts])
    return float(best.mean())
