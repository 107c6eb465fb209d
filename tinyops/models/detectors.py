"""Detectors: images in, losses or detections out, with torchvision's calling convention."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tinyops.nn.batch import (
    GroundTruth,
    ImageBatch,
    Target,
    check_images,
    check_targets,
    collate_images,
    collate_targets,
)
from tinyops.nn.postprocess import Detections

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Detector(nn.Module):
    """What all detectors share; subclasses have heads.

    `model(images, targets)` in training gives a dict of losses, to be added up;
    `model(images)` in evaluation gives, for every image, boxes [K, 4] x1 y1 x2 y2 in its own
    pixels, scores [K] and labels [K], best first.

    Args:
        backbone: pixels [N, 3, H, W] -> features of rising strides; it has `strides`.
        neck: features -> levels of equal channels, and what its own losses are computed from.
        refiner: (levels, batch) -> levels, and what its own losses are computed from, such as
            `tinyops.nn.srtod.SelfReconstruction`; None: the heads get the levels of the neck.
        num_classes: objects only: labels are 1..num_classes.
        mean: of the three channels of images in 0..1.
        std: likewise; the network sees (image - mean) / std.
        scale: factor by which images are enlarged before anything else.

    Raises:
        ValueError: for settings out of range.
    """

    recipe: dict[str, Any]  # the arguments of `tinyops.models.create`, if that made the model

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        *,
        refiner: nn.Module | None = None,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if scale <= 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be 3 numbers, std above 0, got {mean} and {std}")
        self.backbone = backbone
        self.neck = neck
        self.refiner = refiner
        self.num_classes = num_classes
        self.mean, self.std, self.scale = tuple(mean), tuple(std), scale

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections in evaluation.

        Args:
            images: [3, h, w] floats in 0..1 each, of any sizes, on one device.
            targets: of every image boxes [K, 4] x1 y1 x2 y2 in its pixels, labels [K] int64 and,
                if wanted, ignore [K] bool: regions in which nothing counts. Needed in training;
                not looked at in evaluation.

        Raises:
            ValueError: naming the image or target that is wrong, or where targets are missing.
        """
        check_images(images)
        batch = collate_images(
            images,
            mean=self.mean,
            std=self.std,
            divisor=max(cast("Sequence[int]", self.backbone.strides)),
            scale=self.scale,
        )
        factors = [
            (width / image.shape[-1], height / image.shape[-2])
            for (height, width), image in zip(batch.sizes, images, strict=True)
        ]
        truth = None
        if self.training:
            if targets is None:
                raise ValueError("targets must be given in training, got None")
            check_targets(targets, images, self.num_classes)
            dtype = torch.promote_types(batch.pixels.dtype, torch.float32)
            truth = collate_targets(targets, factors=factors, dtype=dtype)
        detections, losses = self.run(batch, truth)
        if truth is not None:
            return losses
        assert detections is not None
        return [
            {**found, "boxes": _to_image(found["boxes"], factor, image)}
            for found, factor, image in zip(detections, factors, images, strict=True)
        ]

    def run(
        self, batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """Detections in pixels of the batch, or with `truth` the losses of all parts."""
        levels, aux = self.neck(self.backbone(batch.pixels))
        shown: Any = None
        if self.refiner is not None:
            levels, shown = self.refiner(levels, batch)
        detections, losses = self.heads(levels, batch, truth)
        if truth is not None:
            losses |= cast("Any", self.neck).losses(aux, batch, truth)
            if self.refiner is not None:
                losses |= cast("Any", self.refiner).losses(shown, batch, truth)
        return detections, losses

    def heads(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """Detections in pixels of the batch, or with `truth` the losses of the heads."""
        raise NotImplementedError


class TwoStageDetector(Detector):
    """Proposals, then a second look at each (Faster R-CNN and Cascade R-CNN)."""

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: nn.Module,
        roi_heads: nn.Module,
        *,
        refiner: nn.Module | None = None,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            backbone,
            neck,
            refiner=refiner,
            num_classes=num_classes,
            mean=mean,
            std=std,
            scale=scale,
        )
        self.rpn = rpn
        self.roi_heads = roi_heads

    def heads(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.heads`."""
        proposals, rpn_losses = self.rpn(levels, batch, truth)
        detections, losses = self.roi_heads(levels, proposals, batch, truth)
        return detections, {**rpn_losses, **losses}


class OneStageDetector(Detector):
    """Classes and boxes from every cell (RetinaNet)."""

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        *,
        refiner: nn.Module | None = None,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            backbone,
            neck,
            refiner=refiner,
            num_classes=num_classes,
            mean=mean,
            std=std,
            scale=scale,
        )
        self.head = head

    def heads(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.heads`."""
        found: tuple[list[Detections] | None, dict[str, Tensor]] = self.head(levels, batch, truth)
        return found


def _to_image(boxes: Tensor, factor: tuple[float, float], image: Tensor) -> Tensor:
    """Boxes [K, 4] in pixels of the batch as boxes in pixels of the image, cut at its border."""
    height, width = image.shape[-2:]
    if factor != (1, 1):
        boxes = boxes / boxes.new_tensor(factor * 2)
    return torch.stack(
        [boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2
    ).flatten(1)
