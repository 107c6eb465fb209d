"""Anchors: the boxes that dense heads predict offsets from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tinyops.nn.batch import ImageBatch


def octave_scales(base: float, octaves: int) -> tuple[float, ...]:
    """RetinaNet's scales: base * 2^(i / octaves) for i in 0..octaves - 1."""
    return tuple(base * 2 ** (i / octaves) for i in range(octaves))


@dataclass(frozen=True)
class BatchAnchors:
    """The anchors of a batch that lie in its images, not in the padding.

    Attributes:
        levels: [H*W*A, 4] of every level; all images have these.
        inside: [N, H*W*A] bool of every level: the cell is in the image. None: all are in theirs.
        boxes: [K, 4] the anchors inside, image after image, level after level.
        image_ids: [K] int64, rising.
        rows: [K] their places in a flat [N * (all anchors of an image)]; None where K is all.
    """

    levels: list[Tensor]
    inside: list[Tensor] | None
    boxes: Tensor
    image_ids: Tensor
    rows: Tensor | None

    def select(self, predictions: Sequence[Tensor]) -> Tensor:
        """The rows of `boxes` in predictions [N, H*W*A, ...] of every level, as [K, ...]."""
        flat = torch.cat(list(predictions), 1).flatten(0, 1)
        return flat if self.rows is None else flat[self.rows]

    def whole(self, batch: ImageBatch) -> "BatchAnchors":
        """Those whose boxes do not reach across the border of their image; so `select` selects."""
        width, height = batch.size_table()[self.image_ids].unbind(1)[::-1]
        good = (self.boxes[:, :2] >= 0).all(1)
        good &= (self.boxes[:, 2] < width) & (self.boxes[:, 3] < height)
        kept = good.nonzero()[:, 0]
        rows = kept if self.rows is None else self.rows[kept]
        return replace(self, boxes=self.boxes[kept], image_ids=self.image_ids[kept], rows=rows)


class AnchorGenerator(nn.Module):
    """Boxes of every scale and ratio around the corner (0, 0) of every cell.

    An anchor of scale s and ratio r on a level of stride t and size b is b * s / sqrt(r) wide and
    b * s * sqrt(r) high; its centre is (column * t, row * t). Sizes are not rounded, and strides
    are fixed numbers, as in mmdet and unlike torchvision: both matter where objects are a few
    pixels large.

    Args:
        strides: of every level, in pixels.
        scales: anchor size / size of the level; the same on all levels.
        ratios: height / width.
        sizes: of every level, in pixels; None: the strides.
    """

    def __init__(
        self,
        strides: Sequence[int],
        scales: Sequence[float],
        ratios: Sequence[float],
        *,
        sizes: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        sizes = strides if sizes is None else sizes
        for name, values in (
            ("strides", strides),
            ("scales", scales),
            ("ratios", ratios),
            ("sizes", sizes),
        ):
            if len(values) == 0 or min(values) <= 0:
                raise ValueError(f"{name} must be numbers above 0, got {values}")
        if len(sizes) != len(strides):
            raise ValueError(f"sizes must be one per stride ({len(strides)}), got {len(sizes)}")
        self.strides, self.sizes = tuple(strides), tuple(sizes)
        self.scales = tuple(scales)
        self.ratios = tuple(ratios)

    @property
    def per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Anchors [H*W*A, 4] of every level: rows, columns, ratios, then scales.

        Args:
            levels: [N, C, H, W] features of every stride. The anchors are at least float32.
        """
        self._check(levels)
        return [
            self._level(x.shape[-2], x.shape[-1], stride, size, x)
            for x, stride, size in zip(levels, self.strides, self.sizes, strict=True)
        ]

    def of_batch(self, levels: Sequence[Tensor], batch: ImageBatch) -> BatchAnchors:
        """The anchors of all images, without those of cells that begin in the padding."""
        anchors = self(levels)
        inside = self._inside(levels, batch)
        count = len(batch.sizes)
        boxes = torch.cat(anchors)
        image_ids = torch.arange(count, device=boxes.device).repeat_interleave(len(boxes))
        boxes = boxes.repeat(count, 1)
        rows = None
        if inside is not None:
            rows = torch.cat(inside, 1).flatten().nonzero()[:, 0]
            boxes, image_ids = boxes[rows], image_ids[rows]
        return BatchAnchors(anchors, inside, boxes, image_ids, rows)

    def extra_repr(self) -> str:
        sizes = "" if self.sizes == self.strides else f", sizes={self.sizes}"
        return f"strides={self.strides}, scales={self.scales}, ratios={self.ratios}{sizes}"

    def _check(self, levels: Sequence[Tensor]) -> None:
        if len(levels) != len(self.strides):
            raise ValueError(
                f"levels must be one per stride ({len(self.strides)}), got {len(levels)}"
            )

    def _level(self, height: int, width: int, stride: int, size: float, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        halves = [
            (size * scale / ratio**0.5 / 2, size * scale * ratio**0.5 / 2)
            for ratio in self.ratios
            for scale in self.scales
        ]
        around = torch.tensor([(-w, -h, w, h) for w, h in halves], dtype=dtype, device=like.device)
        x = torch.arange(width, device=like.device) * stride
        y = torch.arange(height, device=like.device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([x, y, x, y], -1).to(dtype)  # [H, W, 4]
        return (centres[:, :, None] + around).reshape(-1, 4)

    def _inside(self, levels: Sequence[Tensor], batch: ImageBatch) -> list[Tensor] | None:
        """[N, H*W*A] bool of every level, None where all are True; decided on the host."""
        cells = [
            [(-(-height // stride), -(-width // stride)) for height, width in batch.sizes]
            for stride in self.strides
        ]
        shapes = [x.shape[-2:] for x in levels]
        if all(
            h >= shape[0] and w >= shape[1]
            for shape, images in zip(shapes, cells, strict=True)
            for h, w in images
        ):
            return None
        masks = []
        for shape, images in zip(shapes, cells, strict=True):
            ends = torch.tensor(images, device=levels[0].device)  # [N, 2]
            rows = torch.arange(shape[0], device=ends.device) < ends[:, :1]
            columns = torch.arange(shape[1], device=ends.device) < ends[:, 1:]
            mask = rows[:, :, None, None] & columns[:, None, :, None]  # [N, H, W, 1]
            masks.append(mask.expand(-1, -1, -1, self.per_cell).flatten(1))
        return masks
