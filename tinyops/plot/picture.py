"""A picture of what was found, on which objects of 2 px can be seen."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyops._files import replacing
from tinyops.plot import panels
from tinyops.plot.ink import blend_heat, rgb
from tinyops.plot.pixels import as_windowed, shrink
from tinyops.plot.places import Boxes, choose_windows, match
from tinyops.plot.scene import WHITE, Scene


@dataclass(frozen=True)
class Group:
    """Objects of one color; of bands those of sqrt(area) up to `limit` pixels."""

    name: str
    color: str
    limit: float = float("inf")


# TinyPerson's sizes. The colors stay apart for the colour-blind, and on sea, sand and fields.
BANDS = (
    Group("to 8 px", "#FFF24D", 8),
    Group("8 to 12 px", "#F08A00", 12),
    Group("12 to 20 px", "#66FFE5", 20),
    Group("20 to 32 px", "#9966FF", 32),
    Group("larger", "#6699CC"),
)
OUTCOMES = (Group("hits", "#66FFE5"), Group("false alarms", "#FF4D6D"), Group("missed", "#FFF24D"))


def annotate(
    image: Any,
    boxes: Any,
    scores: Any = None,
    labels: Any = None,
    *,
    categories: Sequence[str] | None = None,
    bands: Sequence[Group] = BANDS,
    insets: int = 6,
    window: int = 64,
    zoom: int = 6,
    max_side: int = 2000,
    min_score: float = 0.0,
    tiles: Any = None,
    removed: Any = None,
    heat: Any = None,
    truth: Any = None,
) -> Image.Image:
    """Draw what was found in an image: the whole, a legend, and magnified places.

    A line runs around an object at a distance of one pixel and leaves it as it is. It has the color
    of the object's size. In an image that is shrunk, marks have at least a few pixels.

    Args:
        image: PIL image; uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; or what is read by
            windows, see `tinyops.plot.pixels.WindowedImage`, of which never much is held.
        boxes: [K, 4] x1 y1 x2 y2 in pixels of the image; array or tensor, as those that follow.
        scores: [K] in 0..1, or None.
        labels: [K] from 1, or None.
        categories: names of the labels 1, 2, ...
        bands: sizes and their colors, by rising limit, of which the last is infinite.
        insets: at most so many magnified places; those that show most, see
            `tinyops.plot.places.choose_windows`.
        window: height of a place in pixels of the image; its width fills the picture.
        zoom: pixels of the picture per pixel of the image there.
        max_side: of the whole image in the picture; larger ones are shrunk.
        min_score: boxes with less are left out, of `removed` none.
        tiles: [T, 4] windows that the model looked at: their borders, and overlaps brighter.
        removed: [R, 4] boxes that stitching removed: dashed.
        heat: [h, w] in 0..1 of any size: a map of the whole image, laid over it.
        truth: [M, 4] the objects that there are. Colors then tell hits, false alarms and objects
            that were missed, at an IoU of 0.5 whatever the label.

    Raises:
        ValueError: naming the argument that is out of range or has another shape.
    """
    for name, number in (("window", window), ("zoom", zoom), ("max_side", max_side)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    source = as_windowed(image)
    full = (source.width, source.height)
    found = _boxes("boxes", boxes)
    total = len(found)
    values = _vector("scores", np.ones(total) if scores is None else scores, total)
    texts = _texts(scores is not None, values, labels, categories)
    keep = values >= min_score
    found, values, texts = found[keep], values[keep], [texts[k] for k in np.flatnonzero(keep)]

    if truth is None:
        groups = tuple(bands)
        sizes = np.sqrt((found[:, 2:] - found[:, :2]).clip(0).prod(1))
        index = np.searchsorted([band.limit for band in bands], sizes, "left")
    else:
        groups, objects = OUTCOMES, _boxes("truth", truth)
        hit, seen = match(found, values, objects)
        index = np.concatenate([np.where(hit, 0, 1), np.full((~seen).sum(), 2)])
        found = np.concatenate([found, objects[~seen]])
        texts += [""] * int((~seen).sum())

    factor = min(1.0, max_side / max(full))
    size = (max(1, round(full[0] * factor)), max(1, round(full[1] * factor)))
    grid = panels.Grid.of(size, full, insets, window, zoom)
    shown = np.flatnonzero(((found[:, :2] < full) & (found[:, 2:] > 0)).all(1))
    scene = Scene(
        np.clip(found[shown], 0, [*full, *full]),
        [rgb(groups[k].color) for k in index[shown]],
        [texts[k] for k in shown],
        removed=_boxes("removed", () if removed is None else removed),
        tiles=_boxes("tiles", () if tiles is None else tiles),
        frames=choose_windows(found[shown], index[shown], full, grid.window, grid.cells),
    )
    pixels = shrink(source, *size)
    if heat is not None:
        blend_heat(pixels, _heat(heat))

    letters = min(max(size[0] / 90, 13), 22)
    count = (
        f"{total:,} objects"
        if min_score <= 0
        else (f"{len(values):,} of {total:,} objects, score at least {min_score:g}")
    )
    legend = [
        panels.entry(f"{full[0]:,} x {full[1]:,} px", letters),
        panels.scale_bar(full[0], size[0] / full[0], letters),
        panels.entry(count, letters),
    ]
    for k, group in enumerate(groups):
        legend.append(
            panels.swatch(f"{group.name}: {(index == k).sum():,}", rgb(group.color), letters)
        )
    if removed is not None:
        legend.append(panels.swatch(f"removed: {len(scene.removed):,}", WHITE, letters, dash=True))
    if tiles is not None:
        legend.append(panels.entry(f"{len(scene.tiles):,} tiles", letters))
    if heat is not None:
        legend.append(panels.heat_bar("attention 0 to 1", letters))
    main = panels.whole(scene, pixels, size[0] / full[0], letters)
    cells = [panels.cell(scene, source, k, zoom) for k in range(len(scene.frames))]
    return panels.compose(main, legend, cells, grid)


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture as .png, .jpg, .jpeg or .webp, whole or not at all.

    Raises:
        ValueError: the suffix is another one.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"path must end in .png, .jpg, .jpeg or .webp, got {path}")
    kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
    with replacing(path) as temporary:
        picture.save(temporary, kind, quality=95, subsampling=0)  # keeps the color of thin lines


def _boxes(name: str, values: Any) -> Boxes:
    boxes = np.asarray(values, np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"{name} must be [K, 4] of finite numbers, got {list(boxes.shape)}")
    return boxes


def _vector(name: str, values: Any, count: int) -> NDArray[np.float64]:
    vector = np.asarray(values, np.float64)
    if vector.shape != (count,):
        raise ValueError(f"{name} must be [{count}] like the boxes, got {list(vector.shape)}")
    return vector


def _heat(values: Any) -> NDArray[np.float64]:
    heat = np.asarray(values, np.float64)
    if heat.ndim != 2 or heat.size == 0 or not (heat.min() >= 0 and heat.max() <= 1):
        raise ValueError(f"heat must be [h, w] in 0..1, got {list(heat.shape)}")
    return heat


def _texts(
    scored: bool, scores: NDArray[np.float64], labels: Any, categories: Sequence[str] | None
) -> list[str]:
    """Name and score of each box; of an only category no name."""
    texts = [f"{score:.2f}".lstrip("0") if scored else "" for score in scores]
    if labels is None:
        return texts
    numbers = _vector("labels", labels, len(scores)).astype(int).tolist()
    if len(set(numbers) if categories is None else categories) <= 1:
        return texts
    names = []
    for label in numbers:
        if categories is not None and not 1 <= label <= len(categories):
            raise ValueError(f"labels must be in 1..{len(categories)}, got {label}")
        names.append(str(label) if categories is None else categories[label - 1])
    return [f"{name} {text}".rstrip() for name, text in zip(names, texts, strict=True)]
