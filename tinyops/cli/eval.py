"""Measure detections against a data set in COCO form: AP by size of the objects.

Detections are a file of `tinyops detect` (.json or .csv) or a list of COCO results. Images are
matched by file name and categories by name; where the file has no names, by their ids. Images
without detections count as missed.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tinyops._files import replacing
from tinyops.data.coco import CocoSet, read_coco
from tinyops.evaluation.tables import read_ground_truth
from tinyops.evaluation.tinyperson import BANDS, THRESHOLDS, sized_ap
from tinyops.inference.formats import match_images, read_detections

_PROGRAM = "tinyops eval"


@dataclass
class Eval:
    """The settings of a measurement."""

    annotations: Path
    """COCO json of the data set."""
    detections: Path
    """COCO json, list of COCO results or CSV."""
    protocol: Literal["tinyperson"] = "tinyperson"
    """What is counted: AP as TinyPerson's evaluator counts it."""
    max_detections: int = 200
    """Best detections counted per image and class. Papers take 200 or 1000: it changes the AP."""
    ignore_unknown_images: bool = False
    """Leave out detections in images that the data set does not have, which are errors else."""
    out: Path | None = None
    """Folder for metrics.json and metrics.csv."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops eval <arguments>`; returns the exit code."""
    settings = tyro.cli(Eval, prog=_PROGRAM, description=__doc__, args=list(arguments))
    try:
        metrics = measure(settings)
        if settings.out is not None:
            write_metrics(metrics, settings.out)
    except (ValueError, OSError) as error:  # the caller's mistakes: one line, no traceback
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    show(metrics, Console())
    return 0


def measure(settings: Eval) -> dict[str, Any]:
    """The content of metrics.json: the settings, counts, and under "bands" for every band its
    limits (sqrt of the area in pixels), objects and AP in 0..1, or None where there is no object.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or they do not fit together.
    """
    # Boxes without area are smaller than any band, so that they never count as objects.
    data = read_coco(settings.annotations, None, drop_empty_boxes=True)
    detections, unknown_images = _matched(settings, data)
    truth = data.ground_truth
    objects = _counts(truth)
    values = sized_ap(
        truth,
        detections,
        max_detections=settings.max_detections,
    )
    bands = {}
    for band, limits in BANDS.items():
        found = {f"ap{round(100 * t)}": values[band, t] for t in THRESHOLDS}
        row = {name: None if value < 0 else value for name, value in found.items()}
        bands[band] = {"size": limits, "objects": objects[band], **row}
    return {
        "protocol": settings.protocol,
        "max_detections": settings.max_detections,
        "annotations": str(settings.annotations),
        "detections": str(settings.detections),
        "image_count": len(data.images),
        "images_without_detections": len(data.images) - len({d["image_id"] for d in detections}),
        "unknown_images": unknown_images,
        "detection_count": len(detections),
        "bands": bands,
    }


def write_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Write metrics.json, and metrics.csv with a line per band."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "metrics.json") as path:
        text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    rows = []
    for band, row in metrics["bands"].items():
        low, high = row["size"]
        rest = {k: v for k, v in row.items() if k != "size"}
        cut = {"max_detections": metrics["max_detections"]}
        rows.append({"band": band, "min_size": low, "max_size": high, **rest, **cut})
    with (
        replacing(folder / "metrics.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def show(metrics: dict[str, Any], console: Console) -> None:
    """Print a table."""
    names = [f"ap{round(100 * t)}" for t in THRESHOLDS]
    table = Table("band", "size in px")
    for name in ("objects", *(name.upper() for name in names)):
        table.add_column(name, justify="right")
    for band, row in metrics["bands"].items():
        low, high = row["size"]
        size = f"{low:g} and more" if high >= 1e5 else f"{low:g} to {high:g}"
        cells = ("-" if row[name] is None else f"{100 * row[name]:.2f}" for name in names)
        table.add_row(band, size, f"{row['objects']:,}", *cells)
    console.print(table)
    counts = (
        f"AP in % by {metrics['protocol']}, at most {metrics['max_detections']} detections per "
        f"image and class; {metrics['detection_count']:,} detections in "
        f"{metrics['image_count']:,} images, {metrics['images_without_detections']:,} of them "
        "without any"
    )
    if metrics["unknown_images"]:
        counts += f"; {metrics['unknown_images']:,} other images left out"
    console.print(counts, highlight=False, soft_wrap=True)


def _counts(truth: Any) -> dict[str, int]:
    """How many objects count in each band."""
    table = read_ground_truth(truth)
    areas = table.areas[~(table.crowd | table.ignore | table.uncertain)]
    return {k: int(((areas >= a**2) & (areas <= b**2)).sum()) for k, (a, b) in BANDS.items()}


def _matched(settings: Eval, data: CocoSet) -> tuple[list[dict[str, Any]], int]:
    """The detections with the ids of the data set, and how many images it does not have."""
    file = read_detections(settings.detections)
    images: dict[int, int]
    if file.images:
        ids = match_images(file.images.values(), data.ground_truth["images"])
        images = {key: ids[name] for key, name in file.images.items() if name in ids}
        unknown = [name for name in file.images.values() if name not in ids]
    else:
        images = {image.id: image.id for image in data.images}
        used = dict.fromkeys(entry["image_id"] for entry in file.entries)
        unknown = [f"image_id {key}" for key in used if key not in images]
    if unknown and not settings.ignore_unknown_images:
        raise ValueError(
            f"{settings.detections}: {len(unknown)} images are not in {settings.annotations}, "
            f"the first is {unknown[0]}; --ignore-unknown-images leaves them out"
        )
    by_name = dict(zip(data.classes, data.category_ids, strict=True))
    if len(by_name) < len(data.classes):
        raise ValueError(f"{settings.annotations}: two categories have the same name")
    by_id = {key: key for key in data.category_ids}
    matched = []
    for entry in file.entries:
        if entry["image_id"] not in images:
            continue
        key = entry["category_id"]
        name = file.categories.get(key)
        category = by_id.get(key) if name is None else by_name.get(name)
        if category is None:
            shown = f"category {key}" if name is None else f"category {name!r}"
            raise ValueError(f"{settings.detections}: {shown} is not in {settings.annotations}")
        matched.append({**entry, "image_id": images[entry["image_id"]], "category_id": category})
    return matched, len(unknown)
