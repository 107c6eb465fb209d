"""TinySea: synthetic pictures of tiny people, with exact boxes.

Seas, shores and fields with swimmers and people on land (and skies with drones), between buoys,
rocks, birds and foam that look alike. Meant for tests and for comparing detectors without any
download; numbers measured on it say nothing about photographs.

A picture is a function of (seed, index) alone, byte by byte for given versions of numpy, pillow
and libjpeg. Big scenes are painted in blocks: time grows with the area, and beyond the picture
itself memory does not.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyops.data import synth_sprites as sprites
from tinyops.data.synth_fields import Floats, Relief, blur
from tinyops.data.synth_ground import Fields, Ground, Sand, Shore, Sky, Water
from tinyops.data.synth_layout import Placed, lay_out

CLASS_NAMES = {1: ("person",), 3: ("sea_person", "earth_person", "drone")}
MAX_SIDE = 20_000

_BLOCK = 1024  # a multiple of JPEG's 16-pixel blocks
_HALO = 4  # reach of the blur

Annotation = dict[str, Any]


def make_scene(
    seed: int,
    index: int,
    size: tuple[int, int] = (640, 512),
    *,
    classes: int = 1,
    density: float = 12.0,
    ground: str | None = None,
) -> tuple[NDArray[np.uint8], list[Annotation]]:
    """Draw picture `index` of the set `seed`.

    Args:
        seed: names the set; 0 or more.
        index: number of the picture in it; 0 or more.
        size: width and height, 16 to 20,000 px.
        classes: 1 for person, 3 for sea_person, earth_person and drone; skies occur only with 3.
        density: mean number of objects in 256x256 px.
        ground: "sea", "shore", "sand", "fields" or "sky"; by default drawn.

    Returns:
        image: uint8 [H, W, 3] RGB.
        annotations: TinyPerson's fields without id and image_id: category_id, bbox (x, y, w, h) in
            pixels, area, iscrowd, segmentation (the box), ignore, uncertain, logo, in_dense_image.
            Objects cut by the border have the box of their visible part, and `ignore` where less
            than 49 % of the box is left. Crowds have one box, `uncertain` or `ignore`.

    Raises:
        ValueError: an argument is out of range.
    """
    width, height = _checked(seed, index, size, classes, density)
    rng = np.random.default_rng([seed, index])
    kinds: dict[str, Callable[[np.random.Generator, int, int], Ground]] = {
        "sea": Water,
        "shore": Shore,
        "sand": Sand,
        "fields": Fields,
        "sky": Sky,
    }
    names = list(kinds)
    odds = (0.3, 0.4, 0.12, 0.18, 0.0) if classes == 1 else (0.22, 0.3, 0.1, 0.13, 0.25)
    drawn = names[rng.choice(len(names), p=odds)]
    if ground is not None and ground not in kinds:
        raise ValueError(f"ground must be one of {names}, got {ground!r}")
    surface: Ground = kinds[ground or drawn](rng, height, width)
    sky = isinstance(surface, Sky)
    layout = lay_out(rng, surface.is_water, (width, height), density, sky)
    shade = Relief(rng, height, width, 2.4)
    image = _render(surface, shade, layout.placed, _Camera(rng), (seed, index), height, width)
    annotations = [_annotation(p.kind, p.box, classes, width, height) for p in layout.objects]
    annotations += [_region(*region, classes) for region in layout.regions]
    return image, annotations


class _Camera:
    """Light, lens, sensor and JPEG of one picture."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.sigma = rng.uniform(0.3, 0.9) if rng.random() < 0.5 else 0.0
        self.shade = rng.uniform(0.03, 0.09)
        self.gain = (rng.uniform(0.8, 1.12) * rng.normal(1, 0.02, 3)).astype(np.float32)
        self.noise = rng.uniform(0.8, 3.5)
        self.quality = int(rng.integers(70, 96))

    def develop(self, light: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
        """[H, W, 3] float colours to uint8, without JPEG."""
        light = light * self.gain
        light = np.where(
            light > 180, 255 - 75 * np.exp((180 - light) / 75), light
        )  # film's shoulder
        noise = rng.standard_normal(light.shape, dtype=np.float32) * np.float32(self.noise)
        return np.clip(light + noise + 0.5, 0, 255).astype(np.uint8)

    def compress(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same picture after JPEG."""
        memory = io.BytesIO()
        Image.fromarray(pixels).save(memory, "JPEG", quality=self.quality)
        return np.asarray(Image.open(memory))


def _render(
    surface: Ground,
    shade: Relief,
    placed: Sequence[Placed],
    camera: _Camera,
    key: tuple[int, int],
    height: int,
    width: int,
) -> NDArray[np.uint8]:
    image = np.empty((height, width, 3), np.uint8)
    bins = _bins(placed, height, width)
    for row, top in enumerate(range(0, height, _BLOCK)):
        for column, left in enumerate(range(0, width, _BLOCK)):
            bottom, right = min(top + _BLOCK, height), min(left + _BLOCK, width)
            y = np.arange(top - _HALO, bottom + _HALO)
            x = np.arange(left - _HALO, right + _HALO)
            light = surface.paint(y, x)
            light *= (1 + np.float32(camera.shade) * shade.at(y, x))[..., None]
            for k in bins.get((row, column), ()):
                _blend(light, placed[k], left - _HALO, top - _HALO)
            if camera.sigma:
                light = blur(light, camera.sigma)
            rng = np.random.default_rng([*key, row + 1, column])
            pixels = camera.develop(light[_HALO:-_HALO, _HALO:-_HALO], rng)
            image[top:bottom, left:right] = camera.compress(pixels)
    return image


def _bins(placed: Sequence[Placed], height: int, width: int) -> dict[tuple[int, int], list[int]]:
    """Block -> the objects that touch it, in order of painting."""
    bins: dict[tuple[int, int], list[int]] = {}
    for k, item in enumerate(placed):
        x1, y1, x2, y2 = item.reach
        rows = range(int(y1 - _HALO - 1) // _BLOCK, int(y2 + _HALO + 1) // _BLOCK + 1)
        columns = range(int(x1 - _HALO - 1) // _BLOCK, int(x2 + _HALO + 1) // _BLOCK + 1)
        for row in rows:
            for column in columns:
                bins.setdefault((row, column), []).append(k)
    return bins


def _blend(light: Floats, item: Placed, left: int, top: int) -> None:
    """Paint an object over the block whose corner is (left, top)."""
    x, y, colour, opacity = sprites.paint(item.sprite, item.x, item.y)
    x, y = x - left, y - top
    rows = slice(max(y, 0), min(y + colour.shape[0], light.shape[0]))
    columns = slice(max(x, 0), min(x + colour.shape[1], light.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    inside = (
        slice(rows.start - y, rows.stop - y),
        slice(columns.start - x, columns.stop - x),
    )
    under = light[rows, columns]
    under += (colour[inside] - under * opacity[inside]) * np.float32(item.strength)


def _annotation(
    kind: str, box: tuple[float, float, float, float], classes: int, width: int, height: int
) -> Annotation:
    x1, y1, x2, y2 = box
    full = (x2 - x1) * (y2 - y1)
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    category = CLASS_NAMES[3].index(kind) + 1 if classes == 3 else 1
    kept = (x2 - x1) * (y2 - y1) >= 0.49 * full
    return _fields(category, (x1, y1, x2, y2), ignore=not kept)


def _region(
    kind: str, box: tuple[float, float, float, float], uncertain: bool, classes: int
) -> Annotation:
    category = CLASS_NAMES[3].index(kind) + 1 if classes == 3 else 1
    return _fields(category, box, ignore=not uncertain, uncertain=uncertain)


def _fields(
    category: int,
    box: tuple[float, float, float, float],
    ignore: bool = False,
    uncertain: bool = False,
) -> Annotation:
    x1, y1, x2, y2 = (round(float(value), 3) for value in box)
    w, h = round(x2 - x1, 3), round(y2 - y1, 3)
    return {
        "category_id": category,
        "bbox": [x1, y1, w, h],
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "ignore": ignore,
        "uncertain": uncertain,
        "logo": False,
        "in_dense_image": False,
    }


def _checked(
    seed: int, index: int, size: tuple[int, int], classes: int, density: float
) -> tuple[int, int]:
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    width, height = size
    if not (16 <= width <= MAX_SIDE and 16 <= height <= MAX_SIDE):
        raise ValueError(f"size must be 16 to {MAX_SIDE} px per side, got {width}x{height}")
    if classes not in CLASS_NAMES:
        raise ValueError(f"classes must be 1 or 3, got {classes}")
    if not 0 <= density <= 200:
        raise ValueError(f"density must be 0 to 200 objects in 256x256 px, got {density}")
    return width, height
