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

    def rectangles(self, boxes: Boxes) -> list[Rectangle]:
        """All pixels of the canvas that boxes [K, 4] touch."""
        start = np.array([self.left, self.top])
        corners = (boxes.reshape(-1, 2, 2) - start) * self.scale + self.margin
        low = np.floor(corners[:, 0] + 1e-3)  # a thousandth of a pixel is rounding, not object
        high = np.maximum(np.ceil(corners[:, 1] - 1e-3), low)
        return [(a, b, c, d) for a, b, c, d in np.hstack([low, high]).astype(int).tolist()]

    def sees(self, boxes: Boxes, pixels: Pixels) -> list[int]:
        """The indices of the boxes [K, 4] that are on a canvas, if only in part."""
        height, width = pixels.shape[:2]
        start = np.array([self.left, self.top])
        end = start + (np.array([width, height]) - self.margin) / self.scale
        return np.flatnonzero(((boxes[:, :2] < end) & (boxes[:, 2:] > start)).all(1)).tolist()


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
        near = view.sees(self.boxes, pixels)
        boxes = view.rectangles(self.boxes[near])
        canvas = Canvas(pixels, boxes)
        canvas.tiles(view.rectangles(self.tiles))
        frames = [
            Mark(NOTHING, frame, WHITE) for frame in view.rectangles(np.array(self.frames, float))
        ]
        canvas.draw(frames, line)
        dropped = view.rectangles(self.removed[view.sees(self.removed, pixels)])
        marks = [Mark(NOTHING, _around(box, gap, smallest), WHITE, 3 * line) for box in dropped]
        marks += [
            Mark(box, _around(box, gap, smallest), self.colors[k])
            for k, box in zip(near, boxes, strict=True)
        ]
        canvas.draw(marks, line)
        outer = (gap + line + 1, smallest + 2 * line + 2)
        return [(k, _around(box, *outer)) for k, box in zip(near, boxes, strict=True)]

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
            if not self.texts[k]:
                continue
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


def _around(inside: Rectangle, gap: int, smallest: int) -> Rectangle:
    x1, y1, x2, y2 = inside
    wider, higher = (max(0, smallest - (b - a) - 2 * gap) for a, b in ((x1, x2), (y1, y2)))
    return (
        x1 - gap - wider // 2,
        y1 - gap - higher // 2,
        x2 + gap + (wider + 1) // 2,
        y2 + gap + (higher + 1) // 2,
    )
