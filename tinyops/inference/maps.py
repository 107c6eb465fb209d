"""What a model sees in an image of any size: attention, a reconstruction, and what that lacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tinyops.inference.engine import check, look
from tinyops.inference.types import Detection, Source, View
from tinyops.inference.views import plan_tiles
from tinyops.plot.maps import draw_colors, draw_heat, draw_mask

Map = NDArray[np.float32]
KINDS = ("attention", "difference", "mask", "reconstruction")


@dataclass(frozen=True)
class Maps:
    """Maps of a whole image; None is what the model does not have.

    Attributes:
        attention: [h, w] in 0..1, by which SSPNet gates its features.
        difference: [h, w] in 0..1, of SR-TOD's reconstruction from the image.
        threshold: of SR-TOD; features are enhanced where the difference is greater.
        reconstruction: [h, w, 3] RGB in 0..1, the image as SR-TOD rebuilds it from its features.
    """

    attention: Map | None = None
    difference: Map | None = None
    threshold: float | None = None
    reconstruction: Map | None = None

    def draw(self) -> dict[str, Image.Image]:
        """A picture with a legend for each of `KINDS` that is there."""
        pictures = {}
        if self.attention is not None:
            pictures["attention"] = draw_heat(self.attention, "attention", most=1.0)
        if self.difference is not None and self.threshold is not None:
            pictures["difference"] = draw_heat(self.difference, "difference")
            pictures["mask"] = draw_mask(self.difference, self.threshold)
        if self.reconstruction is not None:
            pictures["reconstruction"] = draw_colors(self.reconstruction, "reconstruction")
        return pictures


def map_kinds(model: Any) -> tuple[str, ...]:
    """Those of `KINDS` that a model has.

    A detector of this package has attention by SSPNet, the others by SR-TOD; any other has none.
    """
    attention = getattr(getattr(model, "neck", None), "attention", None)
    threshold = getattr(getattr(model, "refiner", None), "threshold", None)
    first = KINDS[:1] if isinstance(attention, nn.Module) else ()
    return first + (KINDS[1:] if isinstance(threshold, Tensor) else ())


def image_maps(
    model: nn.Module,
    source: Source,
    how: Detection,
    *,
    level: int | None = None,
    device: torch.device | str | None = None,
    max_side: int = 2000,
) -> Maps:
    """All maps that a model has of an image.

    The whole model looks at the tiles of the image once more, in its own scale. Where tiles
    overlap, the greater attention and difference counts; reconstructions fade into each other.

    Args:
        model: see `map_kinds`; its mode stays as it is.
        source: the image; it stays open.
        how: tile, overlap, batch and amp count.
        level: of the pyramid, for the attention; 0 is the finest, for the smallest objects. None:
            of all levels the greatest.
        device: see `tinyops.inference.engine.detect_sources`.
        max_side: of the maps. Larger images have coarser ones, in which peaks stay.

    Raises:
        ValueError: the model has no map or no such level, or a setting is out of range.
        OSError: as the `read` of `source`, or ValueError.
    """
    check(how)
    kinds = map_kinds(model)
    if not kinds:
        raise ValueError(
            f"model must have SSPNet's neck or SR-TOD's refiner, got {type(model).__name__}"
        )
    detector: Any = model
    strides = list(detector.backbone.strides)
    if level is not None and not 0 <= level < len(strides):
        raise ValueError(f"level must be None or from 0 to {len(strides) - 1}, got {level}")
    if max_side < 1:
        raise ValueError(f"max_side must be at least 1, got {max_side}")
    size = (source.width, source.height)
    attention = _Greatest(size, max_side)
    difference, colors = _Greatest(size, max_side), _Blend(size, max_side)
    seen: dict[str, Any] = {}
    hooks = [
        getattr(detector, part).register_forward_hook(
            lambda module, inputs, outputs, part=part: seen.update({part: outputs[1]})
        )
        for part, kind in (("neck", "attention"), ("refiner", "difference"))
        if kind in kinds
    ]
    tiles = iter(plan_tiles(*size, replace(how, views=(View(),))))
    try:
        while batch := list(islice(tiles, how.batch or 1)):
            pixels = [torch.from_numpy(source.read(tile.window)) for tile in batch]
            shown = [tile.show(x) for tile, x in zip(batch, pixels, strict=True)]
            look(model, shown, device=device, amp=how.amp)
            windows = [tile.window for tile in batch]
            if "attention" in kinds:
                logits = seen["neck"]["attention_logits"]
                for k in range(len(strides)) if level is None else [level]:
                    attention.add(logits[k].sigmoid(), windows, strides[k] / detector.scale)
            if "difference" in kinds:
                difference.add(seen["refiner"].difference, windows, 1 / detector.scale)
                colors.add(seen["refiner"].reconstruction, windows, 1 / detector.scale)
    finally:
        for hook in hooks:
            hook.remove()
    return Maps(
        attention.result()[..., 0] if "attention" in kinds else None,
        difference.result()[..., 0] if "difference" in kinds else None,
        detector.refiner.threshold.item() if "difference" in kinds else None,
        colors.result() if "difference" in kinds else None,
    )


class _Greatest:
    """A map of an image from those of its tiles: the greater where they overlap.

    Args:
        size: width and height of the image.
        max_side: of the map.
    """

    channels = 1

    def __init__(self, size: tuple[int, int], max_side: int) -> None:
        self.size = size
        self.step = max(1.0, max(size) / max_side)  # pixels of the image per cell of the map
        width, height = (max(1, round(side / self.step)) for side in size)
        self.total = torch.zeros(self.channels, height, width)

    def add(self, parts: Tensor, windows: Sequence[Sequence[int]], cell: float) -> None:
        """Add the maps of tiles.

        Args:
            parts: [N, C, h, w], cells of `cell` pixels of the image, the first at the corner of its
                tile; those beyond the tile's end are padding.
            windows: of the tiles, x1 y1 x2 y2 in pixels of the image.
            cell: see above.
        """
        for part, window in zip(parts.float().cpu(), windows, strict=True):
            self._add(part, window, cell)

    def result(self) -> Map:
        """[h, w, C]."""
        return self.total.permute(1, 2, 0).numpy()

    def _add(self, part: Tensor, window: Sequence[int], cell: float) -> None:
        seen, target, _ = self._sample(part, window, cell, F.max_pool2d)
        torch.maximum(target, seen, out=target)

    def _sample(
        self, part: Tensor, window: Sequence[int], cell: float, pool: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The map of a tile at the cells of `total`, that part of `total`, and weights.

        These fall from the middle of the tile to its borders, where they are almost 0.
        """
        slices, places, reach, weights = [], [], [], []
        for axis in (0, 1):
            start, end = window[axis::2]
            count = self.total.shape[2 - axis]
            step = self.size[axis] / count
            middles = (torch.arange(count) + 0.5) * step  # of the cells of `total`, in pixels
            first, last = torch.searchsorted(middles, torch.tensor([start, end])).tolist()
            slices.append(slice(first, last))
            inside = middles[first:last]
            weights.append(torch.minimum(inside - start, end - inside))
            places.append((inside - start) / (cell * part.shape[2 - axis]) * 2 - 1)
            reach.append(int(step / cell / 2))  # cells of `part` around a middle that are merged
        part = pool(part, [2 * n + 1 for n in reach[::-1]], 1, reach[::-1])
        grid = torch.stack(torch.meshgrid(places[0], places[1], indexing="xy"), -1)[None]
        seen = F.grid_sample(part[None], grid, padding_mode="border", align_corners=False)[0]
        return seen, self.total[:, slices[1], slices[0]], weights[1][:, None] * weights[0]


class _Blend(_Greatest):
    """A map of colors; where tiles overlap, one fades into the other."""

    channels = 4  # red, green and blue times the weight, and the weight

    def result(self) -> Map:
        """[h, w, 3]."""
        colors = self.total[:3] / self.total[3]
        return colors.clamp(0, 1).permute(1, 2, 0).numpy()

    def _add(self, part: Tensor, window: Sequence[int], cell: float) -> None:
        width, height = (round((window[k + 2] - window[k]) / cell) for k in (0, 1))
        part = part[:, :height, :width]  # no padding in means
        seen, target, weight = self._sample(part, window, cell, _mean_pool)
        target += torch.cat([seen, torch.ones_like(seen[:1])]) * weight


def _mean_pool(x: Tensor, size: list[int], stride: int, padding: list[int]) -> Tensor:
    return F.avg_pool2d(x, size, stride, padding, count_include_pad=False)
