"""A page that shows what a detector did, in one file that needs nothing else."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from tinyops._files import replacing

# Okabe and Ito's colors, apart for the colour-blind and readable on light and dark.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8F98")
MAX_PICTURES = 4_000_000  # bytes of all pictures of a page


def write_page(
    path: Path | str,
    title: str,
    *,
    lead: str = "",
    facts: Mapping[str, Any] | None = None,
    precision: Mapping[str, float | None] | None = None,
    seconds: Mapping[str, float] | None = None,
    pictures: Mapping[str, Image.Image] | None = None,
    links: Mapping[str, str] | None = None,
) -> None:
    """Write a HTML page of a few MB; what is not given is left out.

    Nothing in it is loaded from elsewhere, and it has no script. It follows the reader's choice of
    a light or dark screen. The file is replaced when the new one is complete.

    Args:
        path: of the file.
        title: of the page.
        lead: a sentence or two below the title.
        facts: a table: machine, versions, settings, model.
        precision: AP50 in 0..1 by band of sizes, as bars; None or NaN: no such objects.
        seconds: time of each stage, as one bar.
        pictures: captions and pictures, which are stored as JPEG, together in at most
            `MAX_PICTURES` bytes: of lower quality, then smaller, if need be.
        links: names and relative paths of the files that belong to it.

    Raises:
        ValueError: naming the argument with a value out of range.
    """
    bars = {name: share("precision", value) for name, value in (precision or {}).items()}
    limit = MAX_PICTURES * 3 // 4 // max(1, len(pictures or {}))  # base64 adds a third
    values = {
        "title": title,
        "lead": lead,
        "facts": facts,
        "precision": bars,
        "stages": _stages(seconds or {}),
        "total": sum((seconds or {}).values()),
        "pictures": [stored_picture(*item, limit) for item in (pictures or {}).items()],
        "links": links,
    }
    write_html(path, "page.html", values)


def write_html(path: Path | str, template: str, values: Mapping[str, Any]) -> None:
    """Write a page of one of the templates beside this file; it is replaced when it is complete."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(values)
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")  # of what is no text: its escape


def share(name: str, value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value}")
    return value


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    if any(not 0 <= value < math.inf for value in seconds.values()):
        raise ValueError(f"seconds must be finite and at least 0, got {dict(seconds)}")
    total = sum(seconds.values()) or 1.0
    stages, start = [], 0.0
    for k, (name, value) in enumerate(seconds.items()):
        stages.append(
            {
                "name": name,
                "color": COLORS[k % len(COLORS)],
                "seconds": value,
                "start": start / total,
                "share": value / total,
            }
        )
        start += value
    return stages


def stored_picture(caption: str, picture: Image.Image, limit: int) -> dict[str, Any]:
    """JPEG in at most `limit` bytes, as a data URI."""
    picture = picture.convert("RGB")
    quality = 90
    while True:
        buffer = io.BytesIO()
        picture.save(
            buffer, "JPEG", quality=quality, subsampling=0
        )  # keeps the color of thin lines
        if buffer.tell() <= limit or max(picture.size) <= 64:
            break
        if quality > 60:
            quality -= 10
        else:
            picture = picture.resize(
                [max(1, side * 4 // 5) for side in picture.size], Image.Resampling.LANCZOS
            )
    data = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"caption": caption, "data": data, "width": picture.width, "height": picture.height}
