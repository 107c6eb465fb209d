"""The report of an evaluation, in one file that needs nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinyops.plot.ink import rgb
from tinyops.plot.page import COLORS, MAX_PICTURES, share, stored_picture, write_html
from tinyops.plot.panels import magnified
from tinyops.plot.picture import OUTCOMES, Group
from tinyops.plot.pixels import WindowedImage
from tinyops.plot.places import Boxes
from tinyops.plot.scene import Scene

SIDE = 320  # pixels of a picture in a gallery
NEAR = 4  # a picture shows so many times the longer side of its object
LEAST = 40  # but at least so many pixels of the image
LEGEND = (*OUTCOMES, Group("counts neither way", "#B8C0CC"))
HIT, WRONG, MISS, NEITHER = range(4)  # indices of `LEGEND`


@dataclass(frozen=True)
class Gallery:
    """Cases of one kind: a caption for each, and pictures if there are any."""

    title: str
    note: str
    captions: Sequence[str]
    pictures: Sequence[Image.Image] = ()


def write_report(
    path: Path | str,
    title: str,
    *,
    lead: str,
    table: Sequence[Mapping[str, Any]],
    note: str,
    precision_title: str,
    precision: Mapping[str, float | None],
    recall: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    classes: Sequence[Mapping[str, Any]],
    galleries: Sequence[Gallery],
    facts: Mapping[str, Any],
) -> None:
    """Write it; the file is replaced when the new one is complete.

    Nothing in it is loaded from elsewhere, and it has no script. It follows the reader's choice of
    a light or dark screen.

    Args:
        path: of the file.
        title: of the page.
        lead: a sentence or two below the title.
        table: rows of the headline table, column -> value; float: two decimals.
        note: below it, what changes its numbers.
        precision_title: heading of the bars.
        precision: AP in 0..1 by size, as bars; None or NaN: no such objects.
        recall: [R] of the curves, in 0..1.
        curves: name -> [R] precision in 0..1.
        classes: rows of a table, like `table`.
        galleries: pictures are stored as JPEG, together in at most `MAX_PICTURES` bytes.
        facts: a table: settings, files, versions.

    Raises:
        ValueError: naming the argument with a value out of range.
    """
    limit = MAX_PICTURES * 3 // 4 // max(1, sum(len(g.pictures) for g in galleries))
    values = {
        "title": title,
        "lead": lead,
        "table": table,
        "note": note,
        "precision_title": precision_title,
        "precision": {name: share("precision", value) for name, value in precision.items()},
        "curves": [_curve(k, *item, recall) for k, item in enumerate(curves.items())],
        "classes": classes,
        "galleries": [
            {
                "title": gallery.title,
                "note": gallery.note,
                "captions": gallery.captions,
                "pictures": [
                    stored_picture(caption, picture, limit)
                    for caption, picture in zip(gallery.captions, gallery.pictures, strict=False)
                ],
            }
            for gallery in galleries
        ],
        "legend": {group.name: group.color for group in LEGEND},
        "facts": facts,
        "cell": cell,
    }
    write_html(path, "report.html", values)


def crop(
    image: WindowedImage,
    box: Sequence[float],
    boxes: Boxes,
    outcomes: Sequence[int],
    texts: Sequence[str],
) -> Image.Image:
    """A square part of an image around a box, magnified, with the boxes that are there.

    Args:
        image: which is read by windows.
        box: x1 y1 x2 y2 in pixels; it may reach out of the image.
        boxes: [K, 4] of the image.
        outcomes: [K] indices of `LEGEND`.
        texts: [K] written beside a box, may be empty.
    """
    full = (image.width, image.height)
    x1, y1, x2, y2 = np.clip(box, 0, [*full, *full]).tolist()
    size = max(LEAST, math.ceil(NEAR * max(x2 - x1, y2 - y1)))
    there = np.flatnonzero(((boxes[:, :2] < full) & (boxes[:, 2:] > 0)).all(1)).tolist()
    left, right = _range(x1, x2, size, image.width)
    top, bottom = _range(y1, y2, size, image.height)
    nothing = np.empty((0, 4))
    scene = Scene(
        boxes[there].clip(0, [*full, *full]),
        [rgb(LEGEND[outcomes[k]].color) for k in there],
        [texts[k] for k in there],
        removed=nothing,
        tiles=nothing,
    )
    return magnified(scene, image, (left, top, right, bottom), SIDE / size)


def _range(low: float, high: float, size: int, limit: int) -> tuple[int, int]:
    """Around the middle of a side, within the image."""
    size = min(size, limit)
    start = min(max(round((low + high - size) / 2), 0), limit - size)
    return start, start + size


def _curve(
    number: int, name: str, precision: Sequence[float], recall: Sequence[float]
) -> dict[str, Any]:
    """A line of the chart, which ends where the precision becomes 0."""
    points = []
    for x, y in zip(recall, precision, strict=True):
        share("recall", x)
        points.append(f"{40 + 420 * x:.1f},{290 - 280 * (share('precision', y) or 0):.1f}")
        if not y:
            break
    color = COLORS[number % len(COLORS)]
    return {"name": name, "color": color, "points": points}


def cell(value: Any) -> str:
    """A value of a table as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
