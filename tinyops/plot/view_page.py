"""A page of annotated images, with boxes that can be chosen by class and size."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyops.plot.page import MAX_PICTURES, stored_picture, write_html
from tinyops.plot.picture import BANDS
from tinyops.plot.pixels import Pixels, as_windowed, shrink
from tinyops.plot.places import Boxes, choose_windows

_SHOWN = 1160  # pixels of the screen that an image fills
_INSET = (96, 64)  # pixels of an image that are magnified
_LONGEST = 1600  # side of a stored picture


@dataclass(frozen=True)
class ViewImage:
    """An image and its boxes.

    Attributes:
        caption: above it.
        pixels: uint8 [H, W, 3].
        boxes: [K, 4] x1 y1 x2 y2 in pixels.
        classes: [K] indices of the names of the page; -1: of every class.
        ignore: [K] bool; these are dashed.
    """

    caption: str
    pixels: Pixels
    boxes: Boxes
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]


def write_view_page(
    path: Path | str,
    title: str,
    images: Sequence[ViewImage],
    classes: Sequence[str],
    *,
    lead: str = "",
    insets: int = 6,
) -> None:
    """Write it; the file is replaced when the new one is complete.

    Colors are those of `tinyops.plot.picture.BANDS`, by sqrt(area). Magnified places have the
    pixels of the file. Nothing is loaded from elsewhere, and there is no script: the choice is made
    by style sheets.

    Args:
        path: of the file.
        title: of the page.
        images: stored as JPEG, together in at most `MAX_PICTURES` bytes.
        classes: names.
        lead: a sentence or two below the title.
        insets: at most so many magnified places of each image.
    """
    limit = MAX_PICTURES * 3 // 4 // max(1, len(images))  # base64 adds a third
    shown = [_image(image, classes, limit, insets) for image in images]
    bands = np.concatenate([np.zeros(0, int), *(_bands(image.boxes) for image in images)])
    numbers = np.concatenate([np.zeros(0, int), *(image.classes for image in images)])
    ignored = sum(int(image.ignore.sum()) for image in images)
    values = {
        "title": title,
        "lead": lead,
        "images": shown,
        "classes": [
            {"id": f"c{k}", "name": name, "count": int((numbers == k).sum())}
            for k, name in enumerate(classes)
            if (numbers == k).any()
        ],
        "bands": [
            {
                "id": f"b{k}",
                "name": band.name,
                "color": band.color,
                "count": int((bands == k).sum()),
            }
            for k, band in enumerate(BANDS)
        ],
        "ignored": ignored,
    }
    write_html(path, "data_view.html", values)


def _bands(boxes: Boxes) -> NDArray[np.int64]:
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1))
    return np.searchsorted([band.limit for band in BANDS], sizes, "left")


def _image(image: ViewImage, classes: Sequence[str], limit: int, insets: int) -> dict[str, Any]:
    height, width = image.pixels.shape[:2]
    factor = min(1.0, _LONGEST / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(shrink(as_windowed(image.pixels), *size))
    window = (min(_INSET[0], width), min(_INSET[1], height))
    bands = _bands(image.boxes)
    kept = ~image.ignore
    places = choose_windows(image.boxes[kept], bands[kept], (width, height), window, insets)
    return {
        **stored_picture(image.caption, picture, limit),
        "view": f"0 0 {width} {height}",
        "full": (width, height),
        "boxes": _rectangles(image, classes, bands, 2 * width / _SHOWN),
        "insets": [
            {
                "x": x1,
                "y": y1,
                "width": x2 - x1,
                "height": y2 - y1,
                "data": _png(image.pixels[y1:y2, x1:x2]),
                "boxes": _rectangles(image, classes, bands, 0.4, (x1, y1, x2, y2)),
            }
            for x1, y1, x2, y2 in places
        ],
    }


def _rectangles(
    image: ViewImage,
    classes: Sequence[str],
    bands: NDArray[np.int64],
    gap: float,
    window: tuple[int, int, int, int] | None = None,
) -> list[dict[str, Any]]:
    """The boxes in a window, `gap` pixels larger on all sides; the large ones first."""
    sides = image.boxes[:, 2:] - image.boxes[:, :2]
    result = []
    for k in np.argsort(-sides.prod(1), kind="stable").tolist():
        x1, y1, x2, y2 = image.boxes[k].tolist()
        if window is not None and not (
            x1 < window[2] and y1 < window[3] and x2 > window[0] and y2 > window[1]
        ):
            continue
        number = int(image.classes[k])
        name = classes[number] if number >= 0 else "every class"
        kind = f"b{bands[k]} c{number}" if number >= 0 else f"b{bands[k]}"
        result.append(
            {
                "kind": f"{kind} ignored" if image.ignore[k] else kind,
                "x": f"{x1 - gap:.2f}",
                "y": f"{y1 - gap:.2f}",
                "width": f"{max(x2 - x1, 0) + 2 * gap:.2f}",
                "height": f"{max(y2 - y1, 0) + 2 * gap:.2f}",
                "text": f"{name}, {x2 - x1:.1f} x {y2 - y1:.1f} px"
                + (", to be ignored" if image.ignore[k] else ""),
            }
        )
    return result


def _png(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
