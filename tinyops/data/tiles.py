"""Windows of large images: where tiles lie, and what a tile shows of a box."""

import torch
from torch import Tensor

Window = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one axis.

    Tiles follow each other by `tile - overlap`; the last one is moved back inside. An axis shorter
    than a tile has one tile that starts at 0 (TinyBenchmark's splitter, and TOV's tiles at run
    time).

    Raises:
        ValueError: `length` or `tile` is not positive, or `overlap` is not in [0, tile).
    """
    if length < 1 or tile < 1:
        raise ValueError(f"length and tile must be positive, got {length} and {tile}")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in [0, {tile}), got {overlap}")
    last = max(length - tile, 0)
    return [min(start, last) for start in range(0, max(length - overlap, 1), tile - overlap)]


def tile_windows(
    width: int,
    height: int,
    tile: tuple[int, int] = (640, 512),
    overlap: int | tuple[int, int] = 30,
) -> list[Window]:
    """Windows x1 y1 x2 y2 that cover an image, row by row.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        tile: width and height of a tile.
        overlap: pixels that neighbours share, the same both ways or (horizontal, vertical). SSPNet
            trains with 30; the tiles that TinyBenchmark released have 50.
    """
    across, down = (overlap, overlap) if isinstance(overlap, int) else overlap
    columns = tile_starts(width, tile[0], across)
    rows = tile_starts(height, tile[1], down)
    return [
        (x, y, min(x + tile[0], width), min(y + tile[1], height)) for y in rows for x in columns
    ]


def clip_to_window(boxes: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Boxes as a window shows them.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels of the image, of positive area.
        window: x1 y1 x2 y2 in the same pixels.

    Returns:
        clipped: [K, 4] in pixels of the window; boxes outside it have no area.
        visible: [K] sqrt(clipped area) / sqrt(area), in 0..1. TinyBenchmark's splitter keeps an
            object from 0.7 on, which is 49 % of its area.
    """
    x1, y1, x2, y2 = window
    low = boxes.new_tensor([x1, y1])
    high = boxes.new_tensor([x2, y2])
    corners = boxes.view(-1, 2, 2).clamp(low, high) - low  # [K, 2, 2]
    clipped = corners.reshape(-1, 4)
    sides, full = corners[:, 1] - corners[:, 0], boxes[:, 2:] - boxes[:, :2]
    visible = sides.prod(1).sqrt() / full.prod(1).sqrt()
    return clipped, torch.nan_to_num(visible)
