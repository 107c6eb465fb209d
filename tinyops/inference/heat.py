"""Where a model pays attention in an image of any size."""

from dataclasses import replace
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyops.inference.engine import look
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
    device: torch.device | str | None = None,
    max_side: int = 2000,
) -> NDArray[np.float32]:
    """The largest attention of all levels of the pyramid, by which SSPNet gates its features.

    The model looks at the tiles of the image once more, in its own scale.

    Args:
        model: see `has_attention`.
        source: the image; it stays open.
        how: tile, overlap, batch and amp count.
        device: see `tinyops.inference.engine.detect_sources`.
        max_side: of the map; larger images have a coarser one.

    Returns:
        [h, w] in 0..1.
    """
    factor = max(1.0, max(source.width, source.height) / max_side)
    heat = torch.zeros(round(source.height / factor) or 1, round(source.width / factor) or 1)
    logits: list[Tensor] = []
    neck, strides = model.neck, cast("Any", model.backbone).strides
    assert isinstance(neck, nn.Module)
    hook = neck.register_forward_hook(lambda *call: logits.extend(call[2][1]["attention_logits"]))
    tiles = iter(plan_tiles(source.width, source.height, replace(how, views=(View(),))))
    try:
        while batch := list(islice(tiles, how.batch)):
            logits.clear()
            shown = [tile.show(torch.from_numpy(source.read(tile.window))) for tile in batch]
            look(model, shown, device=device, amp=how.amp)
            for k, tile in enumerate(batch):
                x1, y1, x2, y2 = (round(v / factor) for v in tile.window)
                part = heat[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
                for x, stride in zip(logits, strides, strict=True):
                    pixels = stride / cast("float", model.scale)  # per cell
                    seen = _enlarge(x[k : k + 1].float().sigmoid().cpu(), pixels)
                    seen = seen[..., : tile.size[1], : tile.size[0]]  # without the padding
                    seen = F.interpolate(seen, part.shape, mode="area")
                    torch.maximum(part, seen[0, 0], out=part)
    finally:
        hook.remove()
    return heat.numpy()


def _enlarge(cells: Tensor, factor: float) -> Tensor:
    sides = [round(side * factor) for side in cells.shape[-2:]]
    return F.interpolate(cells, sides, mode="nearest")
