"""What is to be seen on an image, drawn on any part of it at any scale."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import ImageDraw

from tinyops.plot.ink import GROUND, Canvas, Color, Mark, Rectangle, pill, pill_size
from tinyops.plot.pixels import Pixels
from tinyops.plot.places import Boxes

NOTHING: Rectangle = (0, 0, 0, 0)
WHITE: Color = (255, 255, 255)


@dataclass(frozen=True)
class View:
    """Where pixels x y of an image lie on a canvas: scale * (x - left) + margin, likewise y."""

    left: float
    top: float
    scale: float
    margin: int = 0

    def rectangle(self, box: Sequence[float]) -> Rectangle:
        """All pixels of the canvas that a box touches."""
        x1, x2 = ((x - self.left) * self.scale + self.margin for x in box[::2])
        y1, y2 = ((y - self.top) * self.scale + self.margin for y in box[1::2])
        # A thousandth of a pixel is the rounding of the sum, and no object.
        low, high = np.floor([x1 + 1e-3, y1 + 1e-3]), np.ceil([x2 - 1e-3, y2 - 1e-3])
        high = np.maximum(low, high)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])


@dataclass
class Scene:
    """Boxes of an image, and what else is shown.

    Attributes:
        boxes: [K, 4] in pixels of the image.
        colors: of each.
        texts: of each, may be empty.
        removed: [R, 4] boxes that are drawn dashed.
        tiles: [T, 4] windows, the borders and overlaps of which are shown.
        frames: numbered windows.
    """

    boxes: Boxes
    colors: Sequence[Color]
    texts: Sequence[str]
    removed: Boxes
    tiles: Boxes
    frames: Sequence[Rectangle] = field(default_factory=tuple)

    def draw(
        self, pixels: Pixels, view: View, *, line: int, gap: int, smallest: int
    ) -> list[tuple[int, Rectangle]]:
        """Draw lines on pixels of a canvas, in place.

        Args:
            pixels: [h, w, 3].
            view: where the image lies on it.
            line: width in pixels of the canvas.
            gap: pixels between an object and its line.
            smallest: least side of a frame.

        Returns:
            Of the boxes to be seen there, the number and all that the line encloses, itself too.
        """
        boxes = [(k, view.rectangle(box)) for k, box in enumerate(self.boxes.tolist())]
        boxes = [(k, inside) for k, inside in boxes if _meets(inside, pixels)]
        canvas = Canvas(pixels, [inside for _, inside in boxes])
        self._tiles(canvas, view)
        frames = [Mark(NOTHING, view.rectangle(frame), WHITE) for frame in self.frames]
        canvas.draw(frames, line)
        dropped = (view.rectangle(box) for box in self.removed.tolist())
        marks = [
            Mark(NOTHING, _around(inside, gap, smallest), WHITE, 3 * line) for inside in dropped
        ]
        marks += [
            Mark(inside, _around(inside, gap, smallest), self.colors[k]) for k, inside in boxes
        ]
        canvas.draw(marks, line)
        outer = (gap + line + 1, smallest + 2 * line + 2)
        return [(k, _around(inside, *outer)) for k, inside in boxes]

    def _tiles(self, canvas: Canvas, view: View) -> None:
        covers = np.zeros((canvas.height, canvas.width), np.int16)
        borders = np.zeros((canvas.height, canvas.width), bool)
        for tile in self.tiles.tolist():
            x1, y1, x2, y2 = (max(v, 0) for v in view.rectangle(tile))
            covers[y1:y2, x1:x2] += 1
            for side in (
                (y1, x1, y1 + 1, x2),
                (y2 - 1, x1, y2, x2),
                (y1, x1, y2, x1 + 1),
                (y1, x2 - 1, y2, x2),
            ):
                borders[max(side[0], 0) : side[2], max(side[1], 0) : side[3]] = True
        canvas.tint(covers > 1, WHITE, 0.2)
        canvas.tint(borders, WHITE, 0.7)

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        marks: Sequence[tuple[int, Rectangle]],
        area: Rectangle,
        size: float,
    ) -> None:
        """Write texts beside their boxes, where they cover neither boxes nor each other.

        Args:
            draw: on the canvas.
            marks: of the boxes in question, the number and the rectangle that must stay free.
            area: where texts may be.
            size: of the letters in pixels.
        """
        taken = np.array([rectangle for _, rectangle in marks]).reshape(-1, 4)
        for k, (x1, y1, x2, y2) in marks:
            width, height = pill_size(self.texts[k], size)
            middle = (x1 + x2 - width) // 2, (y1 + y2 - height) // 2
            for x, y in (
                (middle[0], y1 - height),
                (middle[0], y2),
                (x2, middle[1]),
                (x1 - width, middle[1]),
            ):
                spot = np.array((x, y, x + width, y + height))
                inside = (spot[:2] >= area[:2]).all() and (spot[2:] <= area[2:]).all()
                free = ((taken[:, :2] >= spot[2:]) | (taken[:, 2:] <= spot[:2])).any(1).all()
                if inside and free:
                    pill(draw, (x, y), self.texts[k], size, color=self.colors[k], ground=GROUND)
                    taken = np.concatenate([taken, spot[None]])
                    break


def _meets(rectangle: Rectangle, pixels: Pixels) -> bool:
    """Whether a rectangle, of whatever size, is on the canvas."""
    x1, y1, x2, y2 = rectangle
    return x1 < pixels.shape[1] and y1 < pixels.shape[0] and x2 > 0 and y2 > 0


def _around(inside: Rectangle, gap: int, smallest: int) -> Rectangle:
    x1, y1, x2, y2 = inside
    wider, higher = (max(0, smallest - (b - a) - 2 * gap) for a, b in ((x1, x2), (y1, y2)))
    return (
        x1 - gap - wider // 2,
        y1 - gap - higher // 2,
        x2 + gap + (wider + 1) // 2,
        y2 + gap + (higher + 1) // 2,
    )
