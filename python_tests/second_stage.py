"""Small batches, and heads that predict what a test wants, for the tests of the second stage."""

import torch
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth, ImageBatch, collate_targets
from tinyops.nn.rpn import Proposals
from tinyops.nn.sampling import RandomSampler

CHANNELS = 6
STRIDES = (4, 8, 16, 32, 64)


def make_batch(*sizes: tuple[int, int]) -> ImageBatch:
    """Images of these heights and widths, at most 128 pixels."""
    return ImageBatch(torch.zeros(len(sizes), 3, 128, 128), sizes)


def make_levels(count: int) -> list[Tensor]:
    """P2 to P6 of `count` images of 128 pixels, which ask for gradients."""
    return [torch.randn(count, CHANNELS, 128 // s, 128 // s).requires_grad_() for s in STRIDES]


def make_truth(*images: list[tuple[list[float], int]], ignored: tuple = ()) -> GroundTruth:
    """From (box, label) of every image; `ignored` has (box, image)."""
    targets = []
    for k, objects in enumerate(images):
        regions = [box for box, image in ignored if image == k]
        boxes = torch.tensor([box for box, _ in objects] + regions).reshape(-1, 4).float()
        labels = torch.tensor([label for _, label in objects] + [1] * len(regions)).long()
        ignore = torch.arange(len(boxes)) >= len(objects)
        targets.append({"boxes": boxes, "labels": labels, "ignore": ignore})
    return collate_targets(targets)


def make_proposals(*images: list[list[float]]) -> Proposals:
    """From the boxes of every image; the scores fall from 0.9."""
    boxes = torch.tensor([box for image in images for box in image]).reshape(-1, 4).float()
    counts = torch.tensor([len(image) for image in images])
    scores = torch.cat([torch.linspace(0.9, 0.1, len(image)) for image in images])
    return Proposals(boxes, scores, torch.arange(len(images)).repeat_interleave(counts))


def scatter_proposals(count: int, images: int, seed: int = 0) -> Proposals:
    """Random boxes of 5 to 35 pixels in images of 128 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(images, count, 2, generator=generator) * 90
    sizes = 5 + torch.rand(images, count, 2, generator=generator) * 30
    return make_proposals(*torch.cat([corners, corners + sizes], -1).tolist())


class FixedHead(nn.Module):
    """A head that predicts the same for every box, whatever it sees."""

    def __init__(self, logits: list[float], offsets: list[list[float]]) -> None:
        super().__init__()
        self.num_classes = len(logits) - 1
        self.class_agnostic = len(offsets) == 1
        self.logits = nn.Parameter(torch.tensor(logits).float())
        self.offsets = nn.Parameter(torch.tensor(offsets).float())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        count = len(features)
        return self.logits.expand(count, -1), self.offsets.expand(count, -1, -1)


class Spy(RandomSampler):
    """A sampler that remembers what it was asked."""

    def forward(self, matches, boxes, image_ids, truth, num_images, scores=None):
        self.seen = {"matches": matches, "boxes": boxes, "image_ids": image_ids, "scores": scores}
        return super().forward(matches, boxes, image_ids, truth, num_images, scores)


def take_all() -> RandomSampler:
    """Every box that is an object or background, none left out."""
    return RandomSampler(10_000, 1.0)


def check_gradients(module: nn.Module, levels: list[Tensor]) -> None:
    """Every parameter and the pooled levels have a finite gradient."""
    for x in (*module.parameters(), *levels[:4]):
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
