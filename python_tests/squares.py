"""A detector that is never wrong, and images for it: squares of pure colours."""

import numpy as np
import torch
from torch import nn

from tinyops.inference.engine import detect_sources
from tinyops.inference.types import Detection

SMALL = Detection(tile=(64, 48), overlap=16, batch=4)


class Seer(nn.Module):
    """Finds rectangles that do not touch: red ones are label 1, green ones label 2.

    A score grows with the size. It sees all squares that bilinear resizing by 1/2, 2 or 3 leaves.
    """

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.batches = []  # height and width of all images

    def forward(self, images, targets=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        assert all(image.dtype == torch.float32 and image.shape[0] == 3 for image in images)
        assert all(image.is_contiguous() for image in images)
        self.batches.append([tuple(image.shape[1:]) for image in images])
        return [self.find(image) for image in images]

    def find(self, image):
        found, labels = [], []
        for channel in (0, 1):
            lit = image[channel] > 0.4
            corner = lit.clone()
            corner[1:] &= ~lit[:-1]
            corner[:, 1:] &= ~lit[:, :-1]
            for y, x in corner.nonzero().tolist():
                width, height = lit[y, x:].int().cumprod(0).sum(), lit[y:, x].int().cumprod(0).sum()
                found.append([x, y, x + int(width), y + int(height)])
                labels.append(channel + 1)
        boxes = torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
        scores = ((boxes[:, 2:] - boxes[:, :2]).prod(1) / 1000).clamp(max=1)
        labels = torch.tensor(labels, dtype=torch.int64)
        return {"boxes": boxes, "scores": scores, "labels": labels, "masks": boxes}


def draw(width, height, squares):
    """uint8 [height, width, 3]; squares: x y width height channel."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, w, h, channel in squares:
        image[y : y + h, x : x + w, channel] = 255
    return image


def scatter(width, height, count, seed=0, sides=(4, 10), step=2):
    """Squares that do not touch, with positions and sides that are multiples of `step`."""
    rng = np.random.default_rng(seed)
    free = np.ones((height, width), bool)
    squares = []
    while len(squares) < count:
        side = int(rng.integers(sides[0] // step, sides[1] // step + 1)) * step
        x, y = (int(rng.integers(0, (most - side) // step + 1)) * step for most in (width, height))
        gap = 2 * step
        near = free[max(y - gap, 0) : y + side + gap, max(x - gap, 0) : x + side + gap]
        if near.all():
            near[:] = False
            squares.append((x, y, side, side, int(rng.integers(2))))
    return squares


def rows(detections):
    """Boxes with their labels, in an order of their own."""
    boxes, labels = detections["boxes"].tolist(), detections["labels"].tolist()
    return sorted((*box, label) for box, label in zip(boxes, labels, strict=True))


def truth(squares):
    """What `rows` gives for detections that are right."""
    return sorted(
        (float(x), float(y), float(x + w), float(y + h), c + 1) for x, y, w, h, c in squares
    )


class Drawn:
    """A source in memory; the read of number `breaks` fails."""

    georeference = None

    def __init__(self, image, name="drawn", breaks=None, error=OSError):
        self.name, self.image, self.breaks, self.error = name, image, breaks, error
        self.height, self.width = image.shape[:2]
        self.reads, self.closed = 0, 0

    def read(self, window):
        assert not self.closed
        if self.reads == self.breaks:
            raise self.error(f"{self.name} is broken")
        self.reads += 1
        x1, y1, x2, y2 = window
        return self.image[y1:y2, x1:x2]

    def close(self):
        self.closed += 1


def scene(k, width=150, height=100, count=20):
    squares = scatter(width, height, count, seed=k)
    return Drawn(draw(width, height, squares), name=f"scene {k}"), squares


def run(sources, how=SMALL, model=None, **options):
    return list(detect_sources(model or Seer(), sources, how, **options))
