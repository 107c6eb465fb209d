"""SSPNet's training step in plain PyTorch: what one writes without tinyops.

Matching by the matrix of overlaps, sampling by multinomial, region proposals with gradients through
the dense maps, torchvision's suppression, the pyramid by F.interpolate and elementwise operators,
attention targets painted box by box. `installed()` puts these functions in the place of tinyops' in
the modules of its zoo; the attention is plain with `collapse=False`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from tinyops.nn.anchors import BatchAnchors
from tinyops.nn.assign import BACKGROUND, IGNORED
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.rpn import Proposals, RegionProposalNetwork


def match_by_overlap(
    boxes: Tensor,
    image_ids: Tensor,
    truth: GroundTruth,
    *,
    positive: float,
    negative: float,
    least_best: float | None = None,
    ignore_above: float = 0.5,
) -> Tensor:
    """`tinyops.nn.assign.match_by_overlap` with the matrix of every image."""
    matches = torch.full_like(image_ids, BACKGROUND)
    for image in image_ids.unique().tolist():
        here = (image_ids == image).nonzero().flatten()
        objects = (truth.image_ids == image).nonzero().flatten()
        if len(objects) == 0:
            continue
        overlap = torchvision.ops.box_iou(truth.boxes[objects], boxes[here])
        value, best = overlap.max(dim=0)
        found = torch.full_like(best, IGNORED)
        found[value < negative] = BACKGROUND
        found = torch.where(value >= positive, objects[best], found)
        if least_best is not None:
            for k, most in enumerate(overlap.max(dim=1).values.tolist()):
                if most >= least_best and most > 0:
                    found[overlap[k] == most] = objects[k]
        matches[here] = found
    assert len(truth.ignored_boxes) == 0, "not written for ignored regions"
    return matches


def sample_negatives(
    scores: Tensor, overlaps: Tensor, candidates: Tensor, num_samples: int, **_: Any
) -> Tensor:
    """An even draw."""
    items = candidates.nonzero().flatten()
    return items[torch.randperm(len(items), device=items.device)[:num_samples]]


def sample_negatives_from_boxes(
    boxes: Tensor,
    targets: Tensor,
    scores: Tensor | None,
    candidates: Tensor,
    num_samples: int,
    *,
    balance: float,
    **_: Any,
) -> Tensor:
    """Weighted negative sampling as SSPNet's released code computes it, without confidences."""
    items = candidates.nonzero().flatten()
    if num_samples >= len(items):
        return items
    overlap = torch.zeros_like(boxes[:, 0])
    if len(targets):
        corner = torch.maximum(targets[:, None, :2], boxes[None, :, :2])
        sides = (torch.minimum(targets[:, None, 2:], boxes[None, :, 2:]) - corner).clamp(min=0)
        area = (targets[:, 2:] - targets[:, :2]).prod(1)
        overlap = (sides.prod(2) / area[:, None]).max(dim=0).values
    weights = (balance * overlap[items]).exp()
    return items[torch.multinomial(weights, num_samples)]


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor,
    image_ids: Tensor,
    **_: Any,
) -> Tensor:
    """torchvision's, with groups of label and image."""
    groups = image_ids * (int(labels.max()) + 1 if len(labels) else 1) + labels
    return torchvision.ops.batched_nms(boxes, scores, groups, iou_threshold)


def attention_targets(
    boxes: Tensor,
    image_ids: Tensor,
    sizes: tuple[int, int, int],
    *,
    strides: tuple[int, ...] = (4, 8, 16, 32),
    bands: tuple[tuple[float, float], ...] = ((4, 32), (8, 64), (16, 128), (32, 256)),
    strict: bool = False,
    **_: Any,
) -> list[Tensor]:
    """Painted at full size box by box, as the released code does, on the device of the boxes."""
    images, height, width = sizes
    canvases = boxes.new_zeros(len(strides), images, 1, height, width)
    for box, image in zip(boxes.tolist(), image_ids.tolist(), strict=True):
        left, top = max(int(box[0]), 0), max(int(box[1]), 0)
        right, bottom = min(-int(-box[2] // 1), width - 1), min(-int(-box[3] // 1), height - 1)
        if right <= left or bottom <= top:
            continue
        size = ((right - left) * (bottom - top)) ** 0.5
        for k, (low, high) in enumerate(bands):
            first, last = k == 0, k == len(strides) - 1
            if strict:
                inside = low < size < high or (first and size < low) or (last and size > low)
            else:
                inside = (first or size >= low) and (last or size < high)
            canvases[k, image, 0, top:bottom, left:right] = 1 if inside else -1
    return [
        F.interpolate(canvas, (-(-height // s), -(-width // s)), mode="bilinear")
        for canvas, s in zip(canvases, strides, strict=True)
    ]


def gated_upsample_add(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None = None,
    gate_high: Tensor | None = None,
    *,
    self_gate: bool = False,
) -> Tensor:
    """SSPNet eq. 2 and 3 as they are written."""
    size = low.shape[-2:]
    up = F.interpolate(high, size=size, mode="nearest")
    if gate_low is None or gate_high is None:
        return low + up
    if self_gate:
        low = (1 + gate_low) * low
    return low + gate_low * F.interpolate(gate_high, size=size, mode="nearest") * up


def rpn_forward(
    self: RegionProposalNetwork,
    levels: Sequence[Tensor],
    batch: ImageBatch,
    truth: GroundTruth | None = None,
) -> tuple[Proposals, dict[str, Tensor]]:
    """`RegionProposalNetwork.forward` with gradients through the dense maps."""
    predictions = self.predict(levels)
    anchors = self.anchors.of_batch(levels, batch)
    losses = {}
    if truth is not None:

        def predict_at(_: Any, anchors: BatchAnchors, chosen: Tensor) -> tuple[Tensor, ...]:
            return tuple(anchors.select(x)[chosen] for x in predictions)

        with mock.patch.object(self, "predict_at", predict_at):
            losses = self.losses(levels, anchors, batch, truth)
    return self.propose(*predictions, anchors, batch), losses


OWN = (
    match_by_overlap,
    sample_negatives,
    sample_negatives_from_boxes,
    nms,
    attention_targets,
    gated_upsample_add,
)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Within this context the modules of `tinyops.nn` call the functions above."""
    import sys

    replaced = 0
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("tinyops.nn."):
                for function in OWN:
                    if hasattr(module, function.__name__):
                        stack.enter_context(mock.patch.object(module, function.__name__, function))
                        replaced += 1
        stack.enter_context(mock.patch.object(RegionProposalNetwork, "forward", rpn_forward))
        assert replaced >= len(OWN), "the zoo no longer calls what is replaced here"
        yield
