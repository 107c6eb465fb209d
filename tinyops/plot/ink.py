"""Lines that leave what they mark alone, and text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tinyops.plot.pixels import Pixels

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1 y1 x2 y2, the last ones excluded

GROUND, TEXT, FAINT = (20, 23, 28), (236, 239, 243), (150, 158, 170)


def rgb(color: str) -> Color:
    """Of "#rrggbb" or a name."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return red, green, blue


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which it scales."""
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Mark:
    """A line around something.

    Attributes:
        inside: what it marks; the line leaves these pixels alone.
        frame: the inner edge of the line; it contains `inside`.
        color: of the line.
        dash: length of the dashes in pixels; 0: none.
    """

    inside: Rectangle
    frame: Rectangle
    color: Color
    dash: int = 0


class Canvas:
    """Pixels on which lines are drawn around objects, and not over them.

    An object keeps all of its pixels if it is small, else those of its middle: objects that touch
    need lines between them. Where the middle of another one lies within an object, a line around
    the smaller one may cross the larger.

    Args:
        pixels: [h, w, 3], drawn on in place.
        objects: in these pixels.
    """

    def __init__(self, pixels: Pixels, objects: Sequence[Rectangle]) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]
        middles = np.zeros((self.height + 1, self.width + 1), np.int32)
        inside = [self._clip(_core(r)) for r in objects]
        for x1, y1, x2, y2 in inside:
            row, column = min((y1 + y2) // 2, self.height - 1), min((x1 + x2) // 2, self.width - 1)
            middles[row + 1, column + 1] += 1
        total = middles.cumsum(0).cumsum(1)
        self.kept = np.zeros((self.height, self.width), bool)  # what no line may touch
        for x1, y1, x2, y2 in inside:
            if total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1] <= 1:
                self.kept[y1:y2, x1:x2] = True

    def tiles(self, tiles: Sequence[Rectangle]) -> None:
        """Brighten what several tiles cover, and draw their borders, objects left out."""
        covers = np.zeros(self.kept.shape, np.int16)
        borders = np.zeros(self.kept.shape, bool)
        for tile in tiles:
            covers[_slices(self._clip(tile))] += 1
            for side in self._sides(_grown(tile, -1), 1):
                borders[side] = True
        for where, opacity in ((covers > 1, 0.12), (borders, 0.7)):
            where &= ~self.kept
            self.pixels[where] = (self.pixels[where] * (1 - opacity) + 255 * opacity).astype(
                np.uint8
            )

    def draw(self, marks: Sequence[Mark], width: int) -> None:
        """Lines of `width` pixels with a thin dark rim outside, smaller frames over larger ones."""
        base = self.pixels.copy()
        for mark in marks:
            for part in self._sides(_grown(mark.frame, width), 1):
                free = ~self.kept[part]
                self.pixels[part][free] = base[part][free] // 3
        for mark in sorted(marks, key=lambda mark: -_area(mark.frame)):
            for part in self._sides(mark.frame, width):
                free = ~self.kept[part]
                if mark.dash:
                    y, x = np.ogrid[part]
                    free &= (x + y) // mark.dash % 2 == 0
                self.pixels[part][free] = mark.color
            part = _slices(self._clip(_core(mark.inside)))
            self.pixels[part] = base[part]

    def _clip(self, rectangle: Rectangle) -> Rectangle:
        x1, y1, x2, y2 = rectangle
        x1, y1 = min(max(x1, 0), self.width), min(max(y1, 0), self.height)
        return x1, y1, max(min(x2, self.width), x1), max(min(y2, self.height), y1)

    def _sides(self, rectangle: Rectangle, width: int) -> list[tuple[slice, slice]]:
        """The four sides of a line around a rectangle, as far as they are on the canvas."""
        x1, y1, x2, y2 = rectangle
        sides = (
            (x1 - width, y1 - width, x2 + width, y1),
            (x1 - width, y2, x2 + width, y2 + width),
            (x1 - width, y1, x1, y2),
            (x2, y1, x2 + width, y2),
        )
        return [_slices(self._clip(side)) for side in sides]


def _core(rectangle: Rectangle) -> Rectangle:
    """What lines of other objects leave free of an object: all of a small one, else its middle.

    Objects that touch would otherwise have no line between them.
    """
    x1, y1, x2, y2 = rectangle
    across, down = ((b - a) // 4 if b - a > 12 else 0 for a, b in ((x1, x2), (y1, y2)))
    return x1 + across, y1 + down, x2 - across, y2 - down


def _grown(rectangle: Rectangle, by: int) -> Rectangle:
    x1, y1, x2, y2 = rectangle
    return x1 - by, y1 - by, x2 + by, y2 + by


def _area(rectangle: Rectangle) -> int:
    x1, y1, x2, y2 = rectangle
    return (x2 - x1) * (y2 - y1)


def _slices(rectangle: Rectangle) -> tuple[slice, slice]:
    x1, y1, x2, y2 = rectangle
    return slice(y1, y2), slice(x1, x2)


# Anchors of matplotlib's inferno (CC0), evenly spaced.
_HEAT: NDArray[np.float32] = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    np.float32,
)


def heat_colors(values: NDArray[np.floating]) -> Pixels:
    """[...] in 0..1 to [..., 3]: dark to bright, even to the eye."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, _HEAT[:, c]) for c in range(3)], -1).astype(np.uint8)


def blend_heat(pixels: Pixels, heat: NDArray[np.floating], opacity: float = 0.75) -> None:
    """Lay a heat map [h, w] in 0..1 of any size over pixels [H, W, 3], in place."""
    height, width = pixels.shape[:2]
    values = np.asarray(
        Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    )
    for row in range(0, height, 256):  # a strip at a time in float
        part = values[row : row + 256]
        alpha = opacity * part[..., None]
        below = pixels[row : row + 256]
        pixels[row : row + 256] = below * (1 - alpha) + heat_colors(part) * alpha


def pill(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: float,
    *,
    color: Color = GROUND,
    ground: Color = TEXT,
) -> None:
    """Text on a plate, the upper left corner of which is at `xy`; see `pill_size`."""
    width, height = pill_size(text, size)
    x, y = xy
    draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), height // 4, fill=ground)
    draw.text((x + width / 2, y + height / 2), text, color, font(size), anchor="mm")


def pill_size(text: str, size: float) -> tuple[int, int]:
    """Width and height of a plate with text."""
    return round(font(size).getlength(text) + 0.7 * size), round(1.35 * size)
