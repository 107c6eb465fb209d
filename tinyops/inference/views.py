"""How a view shows an image: which windows become tiles, and where their boxes lie."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyops.data.tiles import Window, tile_windows
from tinyops.inference.types import Detection, Flip

_MIRRORED: dict[Flip, list[int]] = {  # dimensions of [3, h, w]
    "none": [],
    "horizontal": [2],
    "vertical": [1],
    "both": [1, 2],
}


@dataclass(frozen=True)
class Tile:
    """A window of an image, and how the model sees it.

    Attributes:
        window: x1 y1 x2 y2 in pixels of the image.
        size: width and height that the model sees.
        flip: how they are mirrored.
    """

    window: Window
    size: tuple[int, int]
    flip: Flip = "none"

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of the window."""
        x1, y1, x2, y2 = self.window
        return x2 - x1, y2 - y1

    def show(self, pixels: Tensor) -> Tensor:
        """What the model sees of the window, [3, height, width] floats in 0..1.

        Args:
            pixels: [h, w, 3] of the window, uint8, or floats in 0..1, which stay as they are.
        """
        image = pixels.permute(2, 0, 1).contiguous()
        if image.dtype == torch.uint8:
            image = image.float().div_(255)
        if self.size != self.sides:
            shrinks = self.size[0] < self.sides[0] or self.size[1] < self.sides[1]
            (image,) = F.interpolate(
                image[None], self.size[::-1], mode="bilinear", antialias=shrinks
            )
        return image.flip(_MIRRORED[self.flip]) if self.flip != "none" else image

    def place(self, boxes: Tensor) -> Tensor:
        """Boxes [K, 4] in pixels of the window, from those in pixels that the model sees."""
        x1, y1, x2, y2 = boxes.unbind(1)
        width, height = self.size
        if 2 in _MIRRORED[self.flip]:
            x1, x2 = width - x2, width - x1
        if 1 in _MIRRORED[self.flip]:
            y1, y2 = height - y2, height - y1
        placed = torch.stack([x1, y1, x2, y2], 1)
        if self.size != self.sides:
            ratios = [a / b for a, b in zip(self.sides, self.size, strict=True)]
            placed *= placed.new_tensor(ratios * 2)
        return placed


def plan_tiles(width: int, height: int, how: Detection) -> list[Tile]:
    """The tiles of an image of this size: view by view, row by row.

    The model sees tiles of the size `how.tile`, so that one covers tile / scale pixels of the
    image, to the nearest pixel, and neighbours share overlap / scale pixels, rounded up. Images
    that are smaller than that are one tile, as small as they are.

    Raises:
        ValueError: if the width or height is not positive.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be positive, got {width} and {height}")
    across, down = (how.overlap, how.overlap) if isinstance(how.overlap, int) else how.overlap
    tiles = []
    for view in how.views:
        columns = _Axis(width, view.scale, how.tile and how.tile[0], across)
        rows = _Axis(height, view.scale, how.tile and how.tile[1], down)
        for window in tile_windows(
            width, height, (columns.side, rows.side), (columns.overlap, rows.overlap)
        ):
            size = (columns.seen(window[2] - window[0]), rows.seen(window[3] - window[1]))
            tiles.append(Tile(window, size, view.flip))
    return tiles


class _Axis:
    """Tiles along one axis of an image: their side and overlap in its pixels."""

    def __init__(self, length: int, scale: float, tile: int | None, overlap: int) -> None:
        self._scale, self._most = scale, tile or max(1, round(length * scale))
        self.side = max(1, round(tile / scale)) if tile else length
        self.overlap = min(math.ceil(overlap / scale), self.side - 1) if tile else 0

    def seen(self, side: int) -> int:
        """Pixels that the model sees of so many of the image."""
        most = self._most
        return most if side == self.side else min(max(1, round(side * self._scale)), most)
