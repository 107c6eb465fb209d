"""Count what is in a data set: objects by class, size and shape, and how anchors fit them.

Prints tables. With --out they are also written as stats.json and as one page, stats.html.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from tinyops._files import replacing
from tinyops.cli.data_source import Source, run_tool
from tinyops.data.anchors import anchor_levels, best_overlaps
from tinyops.data.stats import BANDS, band_numbers, describe
from tinyops.data.types import AnnotatedSet
from tinyops.plot.data_page import Counts, Curves, Histogram, cell, write_data_page

_PROGRAM = "tinyops data stats"
IOUS = (0.3, 0.5, 0.7)
_X = [k / 50 for k in range(51)]  # of the curves
BandsName = Literal["tinyperson", "aitod", "coco", "soda-d", "tt100k"]


@dataclass(kw_only=True)
class Anchors(Source):
    """A data set and the anchors of a detector."""

    scales: tuple[float, ...] = (1.5, 2.5, 3.7, 8.0)
    """Of anchors: size / stride of the level. The defaults are SSPNet's."""
    ratios: tuple[float, ...] = (0.4, 0.8, 1.4)
    """Of anchors: height / width."""
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Of the levels, in pixels."""


@dataclass(kw_only=True)
class Stats(Anchors):
    """The settings."""

    bands: BandsName = "tinyperson"
    """The benchmark whose names of sizes are used; the json has all."""
    out: Path | None = None
    """Folder for stats.json and stats.html."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data stats <arguments>`; returns the exit code."""
    return run_tool(Stats, run, _PROGRAM, __doc__, arguments)


def run(settings: Stats) -> int:
    """The `data stats` command.

    Raises:
        ValueError: an option or the data set is not what it should be.
        OSError: a file cannot be read or written.
    """
    levels = anchor_levels(settings.strides, settings.scales, settings.ratios)
    data = settings.read()
    facts = describe(data)
    overlaps = best_overlaps(data, levels)
    numbers = band_numbers(data, BANDS[settings.bands])
    names = BANDS[settings.bands].names
    by_band = {"all": overlaps, **{n: overlaps[numbers == k] for k, n in enumerate(names)}}
    facts["anchors"] = {
        "scales": settings.scales,
        "ratios": settings.ratios,
        "strides": settings.strides,
        "bands": settings.bands,
        "coverage": {name: coverage(values) for name, values in by_band.items()},
    }
    tables = _tables(facts, settings.bands)
    console = Console()
    for name, value in _summary(data, facts).items():
        console.print(f"{name}: {value}", highlight=False)
    for title, rows in tables.items():
        if rows:
            console.print(table(title, rows))
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        with replacing(settings.out / "stats.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1))
        _write_page(settings, data, facts, by_band, tables)
        console.print(f"{settings.out / 'stats.html'}", highlight=False, soft_wrap=True)
    return 0


def coverage(overlaps: np.ndarray[Any, Any]) -> dict[str, Any]:
    """How many objects there are, the mean of their best IoU, and the share of each of `IOUS`."""
    count = len(overlaps)
    shares = {f"IoU {t:g}": float((overlaps >= t).mean()) if count else None for t in IOUS}
    return {"objects": count, "mean IoU": float(overlaps.mean()) if count else None, **shares}


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of a table for the console, all with the same columns."""
    result = Table(title=title, title_justify="left")
    for k, name in enumerate(rows[0]):
        result.add_column(name, justify="right" if k else "left")
    for row in rows:
        result.add_row(*map(cell, row.values()))
    return result


def _summary(data: AnnotatedSet, facts: Mapping[str, Any]) -> dict[str, str]:
    size = facts["size"]
    sizes = [f"{x['width']}x{x['height']} ({x['images']:,})" for x in facts["image_sizes"][:3]]
    return {
        "images": f"{facts['images']:,}, of which {facts['empty_images']:,} without objects",
        "objects": f"{facts['objects']:,} of {len(data.classes)} classes",
        "to be ignored": f"{facts['ignored']:,} ({100 * facts['ignore_share']:.1f} % of all boxes)",
        "mean size": f"{cell(size['mean'])} px, deviation {cell(size['deviation'])}",
        "most frequent images": ", ".join(sizes) or "none",
    }


def _tables(facts: Mapping[str, Any], bands: str) -> dict[str, list[dict[str, Any]]]:
    total = facts["objects"] or 1
    return {
        f"Sizes of {bands}": [
            {"band": name, "objects": count, "percent": 100 * count / total}
            for name, count in facts["bands"][bands].items()
        ],
        "Classes": [
            {"class": name, **{k: v for k, v in row.items() if k != "deviation"}}
            for name, row in facts["classes"].items()
        ],
        "Best IoU with an anchor": [
            {"band": name, **row} for name, row in facts["anchors"]["coverage"].items()
        ],
    }


def _write_page(
    settings: Stats,
    data: AnnotatedSet,
    facts: Mapping[str, Any],
    by_band: Mapping[str, np.ndarray[Any, Any]],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    assert settings.out is not None
    anchors = (
        f"Share of objects whose best IoU with an anchor is at least x. Scales "
        f"{settings.scales}, ratios {settings.ratios}, strides {settings.strides}."
    )
    lines = {
        name: [float((values >= x).mean()) for x in _X]
        for name, values in by_band.items()
        if len(values)
    }
    side = "Longer side" if BANDS[settings.bands].long_side else "sqrt(area)"
    ratios, per_image = facts["aspect_ratios"], facts["objects_per_image"]
    charts: list[Counts | Histogram | Curves] = [
        Counts(
            "Objects by size",
            f"{side}, in the bands of {settings.bands}",
            facts["bands"][settings.bands],
        ),
        Histogram(
            "Sizes", "sqrt(area) in pixels", facts["sizes"]["edges"], facts["sizes"]["counts"]
        ),
        Histogram("Shapes", "width / height", ratios["edges"], ratios["counts"]),
        Histogram(
            "Objects per image", "images by objects", per_image["edges"], per_image["counts"]
        ),
        Curves("Anchor coverage", anchors, _X, lines),
    ]
    write_data_page(
        settings.out / "stats.html",
        settings.data.name,
        lead=f"What is in {settings.data}.",
        facts=_summary(data, facts),
        charts=charts,
        tables=tables,
    )
