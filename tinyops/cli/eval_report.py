"""The report of `tinyops eval`."""

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tinyops
from tinyops.evaluation.details import (
    DUPLICATE,
    FALSE,
    FOUND,
    LEFT_OUT,
    MISSED,
    Details,
    mean_of_classes,
)
from tinyops.inference.source import open_source
from tinyops.plot.report import HIT, MISS, NEITHER, WRONG, Gallery, crop, write_report

MOST = 60  # cases in a gallery


def note(metrics: Mapping[str, Any]) -> str:
    """What the numbers of the table depend on."""
    kind = "" if metrics["compatible"] else ", without the quirks of the original evaluation"
    text = (
        f"In % by {metrics['protocol']}{kind}. {metrics['detection_count']:,} detections in "
        f"{metrics['images']:,} images, {metrics['images_without_detections']:,} of them without "
        f"any. {metrics['found']:,} objects found, {metrics['missed']:,} missed, "
        f"{metrics['false_alarms']:,} false alarms, {metrics['duplicates']:,} duplicates "
        f"({metrics['setting']})."
    )
    if metrics["unknown_images"]:
        text += f" {metrics['unknown_images']:,} other images left out."
    return text


def write_evaluation(
    path: Path, metrics: Mapping[str, Any], details: Details, images: Path | None
) -> None:
    """Write the page.

    Args:
        path: of the file.
        metrics: content of metrics.json.
        details: of the same evaluation.
        images: folder of the images, of which cases are shown; None: only lists.

    Raises:
        OSError: an image that is to be shown cannot be read.
        ValueError: it has no file name, or is of a kind that is refused.
    """
    curves = mean_of_classes(details.precision)
    ap = dict(zip(details.bands, mean_of_classes(details.ap).tolist(), strict=True))
    named = {band: f"{band}, {_limits(*limits)}" for band, limits in details.bands.items()}
    best = {band: None if value < 0 else value for band, value in ap.items()}
    write_report(
        path,
        f"{metrics['protocol']}: {Path(metrics['detections']).name}",
        lead=f"Measured against {Path(metrics['gt']).name}.",
        table=metrics["table"],
        note=note(metrics),
        precision_title=f"AP by size, IoU {details.threshold:.2f}",
        precision=best,
        recall=details.recall.tolist(),
        curves={
            f"{named[band]}: AP {best[band]:.3f}": curve
            for band, curve in zip(details.bands, curves.tolist(), strict=True)
            if best[band] is not None
        },
        classes=_classes(details),
        galleries=_galleries(details, images),
        facts={
            "protocol": metrics["protocol"],
            "setting": metrics["setting"],
            "quirks of the original": "kept" if metrics["compatible"] else "left out",
            "ground truth": metrics["gt"],
            "detections": metrics["detections"],
            "versions": f"tinyops {tinyops.__version__}, numpy {np.__version__}, "
            f"Python {platform.python_version()}",
        },
    )


def _limits(low: float, high: float) -> str:
    return f"{low:.4g} px and more" if high >= 1e5 else f"{low:.4g} to {high:.4g} px"


def _classes(details: Details) -> list[dict[str, Any]]:
    """A row for each class: counts at the headline's setting, and AP in percent by size."""
    count = len(details.classes)
    columns = {
        "found": details.object_labels[details.object_kinds == FOUND],
        "missed": details.object_labels[details.object_kinds == MISSED],
        "false alarms": details.labels[details.kinds == FALSE],
        "duplicates": details.labels[details.kinds == DUPLICATE],
    }
    counts = {name: np.bincount(x, minlength=count).tolist() for name, x in columns.items()}
    rows = []
    for k, name in enumerate(details.classes):
        ap = zip(details.bands, details.ap[:, k].tolist(), strict=True)
        rows.append(
            {
                "class": name,
                **{column: values[k] for column, values in counts.items()},
                **{f"AP {band}": None if x < 0 else 100 * x for band, x in ap},
            }
        )
    return rows


def _galleries(details: Details, folder: Path | None) -> list[Gallery]:
    objects = (details.object_images, details.object_labels, details.object_boxes)
    missed = np.flatnonzero(details.object_kinds == MISSED)
    missed = missed[np.argsort(-_sizes(details.object_boxes[missed]), kind="stable")]
    false = np.flatnonzero(details.kinds == FALSE)
    false = false[np.argsort(-details.scores[false], kind="stable")]
    found = (details.images, details.labels, details.boxes)
    scores = [f"{score:.3g}, " for score in details.scores[false[:MOST]].tolist()]
    return [
        _gallery("Missed objects", "largest first", details, objects, missed, None, folder),
        _gallery("False alarms", "highest score first", details, found, false, scores, folder),
    ]


def _gallery(
    title: str,
    order: str,
    details: Details,
    columns: Sequence[NDArray[Any]],
    rows: NDArray[np.int64],
    scores: Sequence[str] | None,
    folder: Path | None,
) -> Gallery:
    """Of rows of objects or of detections: image, label and box of each."""
    images, labels, boxes = (column[rows[:MOST]] for column in columns)
    starts = [""] * len(images) if scores is None else scores
    captions = []
    for start, image, label, box, size in zip(
        starts, images, labels, boxes.tolist(), _sizes(boxes), strict=True
    ):
        name = details.image_names[image] or f"image {details.image_ids[image]}"
        kind = f"{details.classes[label]}, " if len(details.classes) > 1 else ""
        captions.append(f"{start}{kind}{size:.1f} px: {name}, x {box[0]:.0f} y {box[1]:.0f}")
    pictures: list[Image.Image | None] = [None] * len(images)
    for image in [] if folder is None else np.unique(images).tolist():
        if not details.image_names[image]:
            raise ValueError(f"image {details.image_ids[image]} has no file name to show it by")
        source = open_source(_file(folder / details.image_names[image]))
        try:
            for k in np.flatnonzero(images == image).tolist():
                least = -np.inf if scores is None else details.scores[rows[k]]
                pictures[k] = crop(source, boxes[k], *_drawn(details, image, boxes[k], least))
        finally:
            source.close()
    shown = f"{len(images):,} of {len(rows):,}, " if len(images) < len(rows) else ""
    shown += order if len(rows) else "None."
    return Gallery(title, shown[0].upper() + shown[1:], captions, [x for x in pictures if x])


def _file(path: Path) -> Path:
    """An image whose name may lack its suffix, as in VisDrone."""
    whole = (path.with_name(path.name + suffix) for suffix in (".jpg", ".jpeg", ".png"))
    return path if path.is_file() else next((x for x in whole if x.is_file()), path)


def _drawn(
    details: Details, image: int, box: NDArray[np.float64], least: float
) -> tuple[NDArray[np.float64], list[int], list[str]]:
    """Boxes, outcomes and texts of an image, for `crop`.

    Objects, and false alarms of at least a score; where it is infinite, of an object that was
    missed, those that touch it.
    """
    here = details.object_images == image
    outcome = {FOUND: HIT, MISSED: MISS, LEFT_OUT: NEITHER}
    outcomes = [outcome[kind] for kind in details.object_kinds[here].tolist()]
    false = (details.images == image) & (details.kinds == FALSE) & (details.scores >= least)
    if not math.isfinite(least):
        false &= ((details.boxes[:, :2] < box[2:]) & (details.boxes[:, 2:] > box[:2])).all(1)
    texts = [f"{score:.2f}".lstrip("0") for score in details.scores[false].tolist()]
    boxes = np.concatenate([details.object_boxes[here], details.boxes[false]])
    return boxes, outcomes + [WRONG] * len(texts), [""] * len(outcomes) + texts


def _sizes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sizes: NDArray[np.float64] = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    return sizes
