"""Where a detector with attention looks, as a map of a whole image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.inference.engine import check, look
from tinyops.inference.types import Detection, Source
from tinyops.inference.views import Tile, plan_tiles


def heat_maps(
    model: nn.Module,
    image: Source,
    *,
    level: int = 0,
    stride: int = 8,
    tile: tuple[int, int] | None = (640, 512),
    overlap: int | tuple[int, int] = 100,
    batch: int = 8,
    device: torch.device | str | None = None,
    amp: str = "none",
) -> Tensor:
    """The attention of a level of SSPNet's pyramid, tile by tile; overlaps have the greater one.

    The whole detector runs, so that it sees what it sees when it detects.

    Args:
        model: a detector of `tinyops.models` with SSPNet's neck; its mode stays as it is.
        image: read by windows, and left open.
        level: 0 is the finest, which looks for the smallest objects.
        stride: pixels of the image per cell of the map.
        tile: width and height in pixels; None: the whole image.
        overlap: pixels that neighbouring tiles share.
        batch: tiles that the model sees at once.
        device: of the model; None: that of its first parameter.
        amp: "none", "bf16" or "fp16".

    Returns:
        [ceil(height / stride), ceil(width / stride)] float32 in 0..1 on the CPU.

    Raises:
        ValueError: the model has no attention or no such level, or a setting is out of range.
        OSError: as the image's `read`, or ValueError.
    """
    how = Detection(tile=tile, overlap=overlap, batch=batch, amp=amp)  # type: ignore[arg-type]
    check(how)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    seen: list[list[Tensor]] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        aux = output[1] if isinstance(output, tuple) and len(output) == 2 else {}
        seen.append(aux.get("attention_logits", []))

    neck = getattr(model, "neck", None)
    if not isinstance(neck, nn.Module):
        raise _no_attention(model)
    heat = torch.zeros(-(-image.height // stride), -(-image.width // stride))
    tiles = plan_tiles(image.width, image.height, how)
    hook = neck.register_forward_hook(keep)
    try:
        for first in range(0, len(tiles), batch):
            shown = tiles[first : first + batch]
            look(model, [_pixels(image, tile) for tile in shown], device=device, amp=amp)
            logits = seen.pop()
            if not logits:
                raise _no_attention(model)
            if not 0 <= level < len(logits):
                raise ValueError(f"level must be from 0 to {len(logits) - 1}, got {level}")
            detector: Any = model
            cell = detector.backbone.strides[level] / detector.scale
            maps = logits[level].float().sigmoid().cpu()
            for part, here in zip(maps, shown, strict=True):
                _lay(heat, part, here.window, cell, stride, (image.width, image.height))
    finally:
        hook.remove()
    return heat


def _no_attention(model: nn.Module) -> ValueError:
    return ValueError(
        f"model must have attention, as those with SSPNet's neck, got {type(model).__name__} "
        f"with {type(getattr(model, 'neck', None)).__name__}"
    )


def _pixels(image: Source, tile: Tile) -> Tensor:
    pixels = image.read(tile.window)
    return tile.show(torch.from_numpy(np.require(pixels, requirements=["C", "W"])))


def _lay(
    heat: Tensor,
    part: Tensor,
    window: Sequence[int],
    cell: float,
    stride: int,
    size: tuple[int, int],
) -> None:
    """Put the map of a tile onto that of the image, where it is greater.

    Args:
        heat: [H, W], cells of `stride` pixels of the image.
        part: [1, h, w], cells of `cell` pixels, the first at the corner of the tile; beyond the
            tile's end there is padding.
        window: of the tile, x1 y1 x2 y2 in pixels of the image.
        cell: see above.
        stride: see above.
        size: width and height of the image.
    """
    slices, places = [], []
    for axis in (0, 1):
        # Middles of the cells of the map, in pixels; that of the last may lie beyond the image.
        middles = (torch.arange(heat.shape[1 - axis]) + 0.5) * stride
        middles = middles.clamp(max=size[axis] - 0.5)
        first, last = torch.searchsorted(middles, torch.tensor(window[axis::2])).tolist()
        slices.append(slice(first, last))
        places.append((middles[first:last] - window[axis]) / (cell * part.shape[2 - axis]) * 2 - 1)
    y, x = torch.meshgrid(places[1], places[0], indexing="ij")
    grid = torch.stack([x, y], -1)[None]
    sampled = F.grid_sample(part[None], grid, padding_mode="border", align_corners=False)[0, 0]
    target = heat[slices[1], slices[0]]
    torch.maximum(target, sampled, out=target)
