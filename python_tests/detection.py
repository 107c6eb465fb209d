"""What the tests of detectors share: plain-loop oracles, tiny batches, and stubs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth, ImageBatch, collate_targets

STRIDES = (4, 8, 16, 32, 64)


def target(*boxes, labels=None, ignore=None):
    """A target from boxes as numbers; without any, of an image without objects."""
    made = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([1] * len(boxes) if labels is None else labels),
    }
    made["labels"] = made["labels"].to(torch.int64)
    if ignore is not None:
        made["ignore"] = torch.tensor(ignore, dtype=torch.bool)
    return made


def truth(*targets) -> GroundTruth:
    return collate_targets(targets)


def batch_of(*sizes, height=None, width=None) -> ImageBatch:
    """Random images of these sizes, padded to multiples of 32 or to the given size."""
    height = height or -(-max(h for h, _ in sizes) // 32) * 32
    width = width or -(-max(w for _, w in sizes) // 32) * 32
    return ImageBatch(torch.rand(len(sizes), 3, height, width), tuple(sizes))


def pyramid(batch: ImageBatch, channels: int = 8, strides=STRIDES) -> list[Tensor]:
    """Random features of every stride."""
    n, _, height, width = batch.pixels.shape
    return [torch.randn(n, channels, -(-height // s), -(-width // s)) for s in strides]


def iou(a, b) -> float:
    """Of two boxes, in Python's floats."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = (
        (float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in (a, b)
    )
    inter = max(0.0, min(aw, bw) - max(ax, bx)) * max(0.0, min(ah, bh) - max(ay, by))
    union = (aw - ax) * (ah - ay) + (bw - bx) * (bh - by) - inter
    return inter / union if union > 0 else 0.0


def share_inside(box, region) -> float:
    """Intersection / area of the box."""
    x1, y1, x2, y2 = (float(x) for x in box)
    a1, b1, a2, b2 = (float(x) for x in region)
    area = (x2 - x1) * (y2 - y1)
    inter = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
    return inter / area if area > 0 else 0.0


class PlainBackbone(nn.Module):
    """Pooled pixels by 1x1 convolutions without bias: padding stays 0, neighbours do not mix."""

    def __init__(self, channels=(8, 8, 8, 8), strides=(4, 8, 16, 32)) -> None:
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 1, bias=False) for c in channels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [
            conv(F.avg_pool2d(pixels, stride)).relu()
            for conv, stride in zip(self.convs, self.strides, strict=True)
        ]


class PlainNeck(nn.Module):
    """The features as they are, one level more, and a loss of its own."""

    def __init__(self, channels: int = 8, strides=STRIDES) -> None:
        super().__init__()
        self.channels, self.strides = channels, tuple(strides)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        levels = [self.gain * x for x in features]
        levels.append(F.max_pool2d(levels[-1], 1, 2))
        return levels, {"mean": [x.mean() for x in levels]}

    def losses(self, aux, batch, truth) -> dict[str, Tensor]:
        return {"neck": sum(x**2 for x in aux["mean"])}


class Everything(nn.Module):
    """A sampler that takes all."""

    def forward(self, matches, boxes, image_ids, truth, num_images, scores=None):
        return (matches >= 0).nonzero()[:, 0], (matches == -1).nonzero()[:, 0]


def image_of(levels, batch: ImageBatch, k: int) -> tuple[list[Tensor], ImageBatch]:
    """Image k of a batch alone, cut to its own padding, with its features."""
    height, width = batch.sizes[k]
    padded = [-(-side // 32) * 32 for side in (height, width)]
    own = ImageBatch(batch.pixels[k : k + 1, :, : padded[0], : padded[1]], (batch.sizes[k],))
    return [
        x[k : k + 1, :, : -(-padded[0] // s), : -(-padded[1] // s)]
        for x, s in zip(levels, STRIDES, strict=True)
    ], own


def without_padding(levels, batch: ImageBatch) -> list[Tensor]:
    """The features with zeros beyond the cells of every image."""
    cut = []
    for x, stride in zip(levels, STRIDES, strict=True):
        x = x.clone()
        for k, (height, width) in enumerate(batch.sizes):
            x[k, :, -(-height // stride) :] = 0
            x[k, :, :, -(-width // stride) :] = 0
        cut.append(x)
    return cut
