"""The parts of a picture: the whole image, its legend, magnified places, and how they lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tinyops.plot.ink import (
    FAINT,
    GROUND,
    TEXT,
    Color,
    Rectangle,
    font,
    heat_colors,
    pill,
    pill_size,
)
from tinyops.plot.pixels import Pixels, WindowedImage
from tinyops.plot.scene import Scene, View

MARGIN = 16  # pixels around the image, into which lines around objects at its border reach
_GAP = 12  # between places
_CAPTION = 26  # pixels above a place
_WIDEST = 1.75  # width / height of a place


@dataclass(frozen=True)
class Grid:
    """How magnified places lie: below an image, or beside one that is high."""

    columns: int
    rows: int
    window: tuple[int, int]  # of a place, in pixels of the image
    beside: bool

    @property
    def cells(self) -> int:
        """How many places there are room for."""
        return self.columns * self.rows

    @staticmethod
    def of(
        size: tuple[int, int], full: tuple[int, int], count: int, window: int, zoom: int
    ) -> "Grid":
        """Of at most `count` places that fill the side of an image of `size`, seen from `full`."""
        beside = size[1] > 1.2 * size[0]
        long, short = size[::-1] if beside else size
        side = window * zoom + _GAP
        line = max(1, (long + _GAP) // side)
        lines = min(-(-short // side), -(-count // line))
        if lines:
            line = min(line, -(-count // lines))
        fill = min(int((long + _GAP) / line - _GAP) // zoom, int(_WIDEST * window))
        place = (min(max(fill, window), full[0]), min(window, full[1]))
        if beside:
            place = (min(window, full[0]), min(max(fill - _CAPTION // zoom, window), full[1]))
        return Grid(lines, line, place, True) if beside else Grid(line, lines, place, False)


def whole(scene: Scene, pixels: Pixels, scale: float, size: float) -> Image.Image:
    """The image with marks and the numbers of the places."""
    height, width = pixels.shape[:2]
    canvas = np.empty((height + 2 * MARGIN, width + 2 * MARGIN, 3), np.uint8)
    canvas[:] = GROUND
    canvas[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = pixels
    view = View(0, 0, scale, MARGIN)
    marks = scene.draw(canvas, view, line=1 if max(width, height) < 1200 else 2, gap=1, smallest=5)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    taken = np.array([rectangle for _, rectangle in marks]).reshape(-1, 4)
    for k, (x1, y1, x2, y2) in enumerate(view.rectangles(np.array(scene.frames, float)), 1):
        w, h = pill_size(str(k), size)
        corners = [(x, y) for y in (y1 - h - 3, y2 + 3) for x in (x1 - 2, x2 + 2 - w)]
        corners += [(x, y) for x in (x2 + 3, x1 - w - 3) for y in (y1 - 2, y2 + 2 - h)]
        spots = [np.array((x, y, x + w, y + h)) for x, y in corners]
        costs = [
            ((taken[:, :2] < spot[2:]) & (taken[:, 2:] > spot[:2])).all(1).sum()
            + 1e6 * (min(spot[:2]) < 0 or spot[2] > picture.width or spot[3] > picture.height)
            for spot in spots
        ]
        pill(draw, corners[int(np.argmin(costs))], str(k), size)
    return picture


def cell(scene: Scene, source: WindowedImage, number: int, zoom: int) -> Image.Image:
    """A place magnified, with sizes and scores, and a line of text above it."""
    frame = scene.frames[number]
    x1, y1, _, _ = frame
    part = magnified(scene, source, frame, zoom)
    width, height = part.size
    picture = Image.new("RGB", (width, height + _CAPTION), GROUND)
    picture.paste(part, (0, _CAPTION))
    draw = ImageDraw.Draw(picture)
    pill(draw, (0, 2), str(number + 1), 15)
    left = pill_size(str(number + 1), 15)[0] + 8
    text = f"x {x1:,}  y {y1:,}   {zoom}x"
    draw.text((left, _CAPTION / 2 - 1), text, FAINT, font(14), anchor="lm")
    bar = 10 * zoom
    if left + font(14).getlength(text) + bar + 70 < width:
        draw.text((width - bar - 8, _CAPTION / 2 - 1), "10 px", FAINT, font(14), anchor="rm")
        draw.line((width - bar, _CAPTION / 2, width - 1, _CAPTION / 2), FAINT, 2)
    return picture


def magnified(scene: Scene, source: WindowedImage, frame: Rectangle, scale: float) -> Image.Image:
    """A window of an image, larger or smaller, with sizes and scores; frames are not drawn."""
    x1, y1, x2, y2 = frame
    size = round((x2 - x1) * scale), round((y2 - y1) * scale)
    pixels = np.array(Image.fromarray(source.read(frame)).resize(size, Image.Resampling.LANCZOS))
    inside = Scene(scene.boxes, scene.colors, scene.texts, scene.removed, scene.tiles)
    marks = inside.draw(pixels, View(x1, y1, scale), line=2, gap=1, smallest=5)
    picture = Image.fromarray(pixels)
    scene.write(ImageDraw.Draw(picture), marks, (0, 0, *size), 13)
    return picture


def entry(text: str, size: float, symbol: Image.Image | None = None) -> Image.Image:
    """A line of the legend: a symbol and text."""
    left = symbol.width + round(size / 2) if symbol else 0
    picture = Image.new(
        "RGB", (left + round(font(size).getlength(text)), round(1.6 * size)), GROUND
    )
    if symbol:
        picture.paste(symbol, (0, (picture.height - symbol.height) // 2))
    draw = ImageDraw.Draw(picture)
    draw.text((left, picture.height / 2), text, TEXT, font(size), anchor="lm")
    return picture


def swatch(text: str, color: Color, size: float, dash: bool = False) -> Image.Image:
    """A line of the legend with a frame of a color."""
    side = round(0.9 * size)
    symbol = np.zeros((side, side, 3), np.uint8)
    symbol[:] = color
    if dash:
        y, x = np.ogrid[:side, :side]
        symbol[(x + y) // 4 % 2 == 1] = GROUND
    symbol[3:-3, 3:-3] = GROUND
    return entry(text, size, Image.fromarray(symbol))


def heat_bar(text: str, size: float) -> Image.Image:
    """A line of the legend with the colors of a heat map."""
    ramp = np.tile(np.linspace(0, 1, round(6 * size)), (round(0.9 * size), 1))
    return entry(text, size, Image.fromarray(heat_colors(ramp)))


def scale_bar(width: int, scale: float, size: float) -> Image.Image:
    """A line of the legend: how long a round number of the image's pixels is in the picture."""
    target = max(1.0, width / 8)
    unit = 10.0 ** np.floor(np.log10(target))
    length = int(unit * max(k for k in (1, 2, 5) if k * unit <= target))
    symbol = Image.new("RGB", (max(1, round(length * scale)), round(0.6 * size)), GROUND)
    draw = ImageDraw.Draw(symbol)
    right, bottom = symbol.width - 1, symbol.height - 1
    draw.line(((0, 0), (0, bottom), (right, bottom), (right, 0)), TEXT, 2)
    return entry(f"{length:,} px", size, symbol)


def compose(
    main: Image.Image, legend: Sequence[Image.Image], cells: Sequence[Image.Image], grid: Grid
) -> Image.Image:
    """All parts on one ground."""
    left = captioned(main, legend)
    lines = [cells[k : k + grid.columns] for k in range(0, len(cells), grid.columns)]
    if not lines:
        return left
    places = _stack([_stack(line, across=True, gap=_GAP) for line in lines], gap=_GAP)
    strip = Image.new("RGB", (places.width + 2 * MARGIN, places.height + 2 * MARGIN), GROUND)
    strip.paste(places, (MARGIN, MARGIN))
    return _stack([left, strip], across=grid.beside)


def captioned(main: Image.Image, legend: Sequence[Image.Image]) -> Image.Image:
    """A picture and below it its legend."""
    return _stack([main, _flow(legend, main.width)])


def _flow(parts: Sequence[Image.Image], width: int) -> Image.Image:
    """Parts from left to right, in as many lines as needed."""
    x, y, spots = MARGIN, 0, []
    step = max(part.height for part in parts)
    for part in parts:
        if x > MARGIN and x + part.width > width - MARGIN:
            x, y = MARGIN, y + step
        spots.append((x, y))
        x += part.width + round(1.3 * step)
    right = max(x + part.width for (x, _), part in zip(spots, parts, strict=True)) + MARGIN
    picture = Image.new("RGB", (max(width, right), y + step + MARGIN // 2), GROUND)
    for spot, part in zip(spots, parts, strict=True):
        picture.paste(part, (spot[0], spot[1] + (step - part.height) // 2))
    return picture


def _stack(parts: Sequence[Image.Image], across: bool = False, gap: int = 0) -> Image.Image:
    widths, heights = [part.width for part in parts], [part.height for part in parts]
    gaps = gap * (len(parts) - 1)
    size = (sum(widths) + gaps, max(heights)) if across else (max(widths), sum(heights) + gaps)
    picture = Image.new("RGB", size, GROUND)
    x = y = 0
    for part in parts:
        picture.paste(part, (x, y))
        x, y = (x + part.width + gap, 0) if across else (0, y + part.height + gap)
    return picture
