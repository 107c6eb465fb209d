"""Where a model pays attention in an image of any size."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyops.inference.engine import check, look
from tinyops.inference.types import Detection, Source, View
from tinyops.inference.views import plan_tiles


def has_attention(model: Any) -> bool:
    """Whether `attention_map` can look at the model: a detector of this package with SSPNet."""
    return isinstance(getattr(getattr(model, "neck", None), "attention", None), nn.Module)


def attention_map(
    model: nn.Module,
    source: Source,
    how: Detection,
    *,
    level: int | None = None,
    device: torch.device | str | None = None,
    max_side: int = 2000,
) -> NDArray[np.float32]:
    """The attention by which SSPNet gates its features; where tiles overlap, the greater one.

    The whole model looks at the tiles of the image once more, in its own scale.

    Args:
        model: see `has_attention`; its mode stays as it is.
        source: the image; it stays open.
        how: tile, overlap, batch and amp count.
        level: of the pyramid; 0 is the finest, for the smallest objects. None: of all levels the
            greatest.
        device: see `tinyops.inference.engine.detect_sources`.
        max_side: of the map. Larger images have a coarser one, in which peaks stay.

    Returns:
        [h, w] in 0..1.

    Raises:
        ValueError: the model has no attention or no such level, or a setting is out of range.
        OSError: as the `read` of `source`, or ValueError.
    """
    check(how)
    if not has_attention(model):
        neck = type(getattr(model, "neck", None)).__name__
        raise ValueError(
            f"model must have the neck SSPNet, got {type(model).__name__} with neck {neck}"
        )
    detector: Any = model
    strides = list(detector.backbone.strides)
    if level is not None and not 0 <= level < len(strides):
        raise ValueError(f"level must be None or from 0 to {len(strides) - 1}, got {level}")
    if max_side < 1:
        raise ValueError(f"max_side must be at least 1, got {max_side}")
    size = (source.width, source.height)
    step = max(1.0, max(size) / max_side)  # pixels of the image per cell of the map
    heat = torch.zeros(max(1, round(size[1] / step)), max(1, round(size[0] / step)))
    levels = range(len(strides)) if level is None else [level]
    logits: list[Tensor] = []
    hook = detector.neck.register_forward_hook(
        lambda *call: logits.extend(call[2][1]["attention_logits"])
    )
    tiles = iter(plan_tiles(*size, replace(how, views=(View(),))))
    try:
        while batch := list(islice(tiles, how.batch or 1)):
            pixels = [torch.from_numpy(source.read(tile.window)) for tile in batch]
            shown = [tile.show(x) for tile, x in zip(batch, pixels, strict=True)]
            logits.clear()
            look(model, shown, device=device, amp=how.amp)
            for k in levels:
                cell = strides[k] / detector.scale
                for part, tile in zip(logits[k].float().sigmoid().cpu(), batch, strict=True):
                    _lay(heat, part, tile.window, cell, size)
    finally:
        hook.remove()
    return heat.numpy()


def _lay(
    heat: Tensor, part: Tensor, window: Sequence[int], cell: float, size: tuple[int, int]
) -> None:
    """Put the map of a tile onto that of the image, where it is greater.

    Args:
        heat: [H, W] of the image.
        part: [1, h, w], cells of `cell` pixels of the image, the first at the corner of the tile;
            those beyond the tile's end are padding.
        window: of the tile, x1 y1 x2 y2 in pixels of the image.
        cell: see above.
        size: width and height of the image.
    """
    slices, places, reach = [], [], []
    for axis in (0, 1):
        count = heat.shape[1 - axis]
        step = size[axis] / count
        middles = (torch.arange(count) + 0.5) * step  # of the cells of `heat`, in pixels
        first, last = torch.searchsorted(middles, torch.tensor(window[axis::2])).tolist()
        slices.append(slice(first, last))
        places.append((middles[first:last] - window[axis]) / (cell * part.shape[2 - axis]) * 2 - 1)
        reach.append(int(step / cell / 2))  # cells of `part` around a middle that `heat` merges
    part = F.max_pool2d(part, [2 * n + 1 for n in reach[::-1]], 1, reach[::-1])
    grid = torch.stack(torch.meshgrid(places[0], places[1], indexing="xy"), -1)[None]
    seen = F.grid_sample(part[None], grid, padding_mode="border", align_corners=False)[0, 0]
    target = heat[slices[1], slices[0]]
    torch.maximum(target, seen, out=target)
