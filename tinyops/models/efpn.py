"""EFPN: Faster R-CNN with a finer level for small objects (Deng et al., 2020)."""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.models.detectors import IMAGENET_MEAN, IMAGENET_STD, TwoStageDetector
from tinyops.models.phases import PhasedDetector
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.distributed import count_over_processes
from tinyops.nn.efpn import EFPN, SmallRoIHeads
from tinyops.nn.postprocess import Detections
from tinyops.nn.resnet import ResNet
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool
from tinyops.nn.sampling import HardSampler
from tinyops.ops import balanced_l1_sums


class EFPNDetector(PhasedDetector):
    """Faster R-CNN, then the extension of its pyramid, then a head on it, one after the other.

    "detector": Faster R-CNN on P2 to P6; nothing of the extension is computed.

    "distillation": the extension learns to make, of images of half the size, what the frozen
    pyramid makes of whole ones: P2' is compared with the output P2, and P3' with the map P3 within
    (eq. 5 to 8). Images are halved by means of 2x2 pixels. In evaluation as in "detector".

    "refinement": a head for small boxes learns on P2', and with hard examples the extension, too;
    the rest is frozen. Proposals come from P2 to P6, as many as in evaluation. In evaluation small
    proposals are seen by both heads, or by the new one alone, and all boxes are thinned together.

    Args:
        backbone: a ResNet the stem of which ends in a pooling.
        neck: the pyramid.
        rpn: on P2 to P6.
        roi_heads: on P2 to P5.
        small_heads: on P2'.
        keep_coarse: small proposals are seen by `roi_heads`, too, as released; the paper's eq. 2
            gives every proposal one level.
        teacher_scale: the factor by which images are enlarged (bilinear) for the teacher. 1: the
            pixels as they are, so that what is learnt are true details. 2, as released: the student
            sees the size that it will see later, without more details than there are in it.
        balance: weight of the loss in objects, lambda of eq. 8.
        num_classes: objects only.
        mean: of the channels, see `Detector`, and so are the next two.
        std: of the channels.
        scale: of the images.

    Raises:
        ValueError: for another backbone, and numbers out of range.
    """

    backbone: ResNet
    neck: EFPN
    roi_heads: RoIHeads
    small_heads: SmallRoIHeads
    phases = ("detector", "distillation", "refinement")

    def __init__(
        self,
        backbone: ResNet,
        neck: EFPN,
        rpn: nn.Module,
        roi_heads: RoIHeads,
        small_heads: SmallRoIHeads,
        *,
        keep_coarse: bool = True,
        teacher_scale: float = 1.0,
        balance: float = 1.0,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            backbone,
            neck,
            rpn,
            roi_heads,
            num_classes=num_classes,
            mean=mean,
            std=std,
            scale=scale,
        )
        if not isinstance(backbone, ResNet) or not backbone.stem_pool:
            raise ValueError(
                "backbone must be a ResNet whose stem ends in a pooling, "
                f"got another {type(backbone).__name__}"
            )
        if teacher_scale < 1:
            raise ValueError(f"teacher_scale must be at least 1, got {teacher_scale}")
        if balance < 0:
            raise ValueError(f"balance must be at least 0, got {balance}")
        if small_heads.stds != roi_heads.stds:  # one decoding for the boxes of both
            raise ValueError(
                f"small_heads must have the stds of roi_heads, {roi_heads.stds}, "
                f"got {small_heads.stds}"
            )
        self.small_heads = small_heads
        self.keep_coarse, self.teacher_scale, self.balance = keep_coarse, teacher_scale, balance
        self.set_phase(self.phases[0])

    @classmethod
    def extend(
        cls,
        detector: TwoStageDetector,
        *,
        small: float = 56.0,
        hard_examples: bool = True,
        keep_coarse: bool = True,
        teacher_scale: float = 1.0,
        balance: float = 1.0,
    ) -> "EFPNDetector":
        """Faster R-CNN on `tinyops.nn.efpn.EFPN` with a head for small boxes like its own.

        Published, on Tsinghua-Tencent 100K and on val of COCO, as printed in the paper (tables
        VIII, IX), not as measured here; the first number of a pair is that of faster_rcnn_fpn:

            Tsinghua-Tencent 100K   resnet50     AP small 74.5, 75.8   mAP 75.8, 77.0
                                    resnext101   AP small 79.6, 81.7   mAP 75.5, 77.6
            COCO                    resnet50     AP small 20.9, 22.7   AP 37.3, 38.2
                                    resnext101   AP small 24.7, 26.8   AP 41.1, 42.3

        Args:
            detector: whose parts are taken; its second stage must be `RoIHeads`.
            small: proposals of a smaller side sqrt(width * height), in pixels, are small. 56 is
                that of Tsinghua-Tencent 100K (images of 1400 pixels), 112 that of COCO.
            hard_examples: the new head learns from the proposals of greatest loss, and the
                extension with it; else from random ones, like the old head, and alone.
            keep_coarse: see above, and so are the next two.
            teacher_scale: of distillation.
            balance: of its losses.

        Raises:
            ValueError: see above; for another neck or second stage, and for a refiner.
        """
        neck, heads = detector.neck, detector.roi_heads
        if not isinstance(neck, EFPN) or not isinstance(heads, RoIHeads) or detector.refiner:
            raise ValueError(
                "detector must have an EFPN, RoIHeads and no refiner, got "
                f"{type(neck).__name__}, {type(heads).__name__} and "
                f"{type(detector.refiner).__name__}"
            )
        sampler = heads.sampler
        if hard_examples:
            sampler = HardSampler(sampler.num_samples, sampler.positive_fraction)
        head = BoxHead(
            neck.channels,
            hidden=heads.head.fc_cls.in_features,
            num_classes=detector.num_classes,
            class_agnostic=heads.head.class_agnostic,
        )
        pool = RoIPool((neck.finer_stride,))
        return cls(
            cast("ResNet", detector.backbone),
            neck,
            detector.rpn,
            heads,
            SmallRoIHeads(
                pool,
                head,
                small=small,
                sampler=sampler,
                positive=heads.positive,
                negative=heads.negative,
                ignore_above=heads.ignore_above,
                stds=heads.stds,  # by which `heads` decodes the boxes of both
                beta=heads.beta,
            ),
            keep_coarse=keep_coarse,
            teacher_scale=teacher_scale,
            balance=balance,
            num_classes=detector.num_classes,
            mean=detector.mean,
            std=detector.std,
            scale=detector.scale,
        )

    def learners(self) -> Iterable[nn.Module]:
        """See `PhasedDetector.learners`."""
        neck = self.neck
        if self.phase == "detector":
            pyramid = [neck.lateral_convs, neck.output_convs]
            return [self.backbone, *pyramid, self.rpn, self.roi_heads]
        if self.phase == "distillation":
            return [neck.extension]
        hard = isinstance(self.small_heads.sampler, HardSampler)
        return [self.small_heads, *([neck.extension] if hard else [])]

    def run(
        self, batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.run`."""
        if self.phase == "distillation" and truth is not None:
            return None, self.distil(batch, truth)
        levels, _ = self.neck(self.backbone(batch.pixels, extended=self.phase == "refinement"))
        return self.heads(levels, batch, truth)

    def heads(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.heads`."""
        if self.phase != "refinement":
            return super().heads(levels, batch, truth)
        proposals, _ = self.rpn(levels[1:], batch)
        if truth is not None:
            _, losses = self.small_heads(levels[:1], proposals, batch, truth)
            return None, {f"small_{name}": loss for name, loss in losses.items()}
        small = self.small_heads.are_small(proposals.boxes)
        coarse = torch.ones_like(small) if self.keep_coarse else ~small
        parts = []
        for stage, maps, mask in (
            (self.roi_heads, levels[1:], coarse),
            (self.small_heads, levels[:1], small),
        ):
            rows = mask.nonzero()[:, 0]
            boxes, image_ids = proposals.boxes[rows], proposals.image_ids[rows]
            parts.append((*stage.predict(maps, boxes, image_ids), boxes, image_ids))
        logits, offsets, boxes, image_ids = (torch.cat(x) for x in zip(*parts, strict=True))
        return self.roi_heads.detect(logits, offsets, boxes, image_ids, batch), {}

    def distil(self, batch: ImageBatch, truth: GroundTruth) -> dict[str, Tensor]:
        """The losses of "distillation", eq. 5 to 8.

        Of P2' and of P3' each: the mean |difference| of all cells of the images, and of those that
        objects touch.
        """
        neck, backbone = self.neck, self.backbone
        with torch.no_grad():
            pixels = self._of_teacher(batch.pixels)
            merged = neck.merge(backbone(pixels))
            targets = neck.output_convs[0](merged[0]), merged[1]
            finer, *features = backbone(F.avg_pool2d(pixels, 2), extended=True)
            merged = neck.merge(features)
        losses = {}
        for k, (made, wanted) in enumerate(
            zip(neck.extension(finer, merged), targets, strict=True)
        ):
            cells_per_pixel = self.teacher_scale / neck.strides[k]
            sizes = [[math.ceil(side * cells_per_pixel) for side in size] for size in batch.sizes]
            total, positive, cells = balanced_l1_sums(
                made,
                wanted,
                truth.boxes,
                truth.image_ids,
                scale=cells_per_pixel,
                valid=torch.tensor(sizes, device=made.device),
            )
            count = sum(height * width for height, width in sizes)
            for name, weight, loss, number in (
                ("all", 1.0, total, count),
                ("objects", self.balance, positive, cells),
            ):
                divisor = count_over_processes(number, total) * neck.channels
                losses[f"distilled_p{k + 2}_{name}"] = weight * loss / divisor
        return losses

    def _of_teacher(self, pixels: Tensor) -> Tensor:
        """Enlarged, and padded to multiples of what the student, at half the size, needs."""
        if self.teacher_scale != 1:
            pixels = F.interpolate(pixels, scale_factor=self.teacher_scale, mode="bilinear")
        least = 2 * max(self.backbone.strides)
        height, width = (-side % least for side in pixels.shape[-2:])
        return F.pad(pixels, (0, width, 0, height))
