"""RetinaNet's head (Lin et al. 2017): class and box of every anchor, in one stage."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import distance_box_iou_loss, sigmoid_focal_loss

from tinyops.nn.anchors import AnchorGenerator, BatchAnchors
from tinyops.nn.assign import IGNORED, Assigner, OverlapAssigner
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.boxes import decode
from tinyops.nn.dense import best_candidates, init_normal
from tinyops.nn.distributed import count_over_processes
from tinyops.nn.losses import at_least_float32, box_loss
from tinyops.nn.postprocess import SUPPRESSIONS, Detections, split_detections, suppress

STDS = (1.0, 1.0, 1.0, 1.0)
REGRESSIONS = ("l1", "diou")


class RetinaHead(nn.Module):
    """Two towers of convolutions, shared by all levels, with focal loss and a loss of boxes.

    The defaults are mmdet's; "adaptive" settings for tiny objects are a matter of the anchors, and
    of a neck that begins at stride 4.

    Args:
        channels: of every level.
        anchors: of the levels.
        num_classes: objects only; every class has a sigmoid of its own.
        convs: 3x3 convolutions of each tower.
        assigner: says which object every anchor belongs to; default: by IoU, an object from 0.5
            on, background below 0.4, and all objects take their best anchors.
        alpha: weight of objects in the focal loss.
        gamma: its exponent.
        prior: score of every class at the start.
        regression: the loss of boxes: "l1" of the offsets; "diou", 1 - DIoU of the decoded boxes.
        beta: of the smooth L1 loss of the offsets; 0 is L1.
        pre_nms: how many of the best of every level and image are decoded.
        score_threshold: detections have a greater score; Soft-NMS drops those that fall below.
        nms: how duplicates are suppressed, "nms" or "soft_nms".
        nms_threshold: overlap above which they are.
        max_per_image: detections.

    Raises:
        ValueError: for an unknown kind of suppression or loss of boxes.
    """

    def __init__(
        self,
        channels: int,
        anchors: AnchorGenerator,
        num_classes: int,
        *,
        convs: int = 4,
        assigner: Assigner | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        regression: str = "l1",
        beta: float = 0.0,
        pre_nms: int = 1000,
        score_threshold: float = 0.05,
        nms: str = "nms",
        nms_threshold: float = 0.5,
        max_per_image: int = 100,
    ) -> None:
        super().__init__()
        if nms not in SUPPRESSIONS:
            raise ValueError(f"nms must be one of {SUPPRESSIONS}, got {nms!r}")
        if regression not in REGRESSIONS:
            raise ValueError(f"regression must be one of {REGRESSIONS}, got {regression!r}")
        self.anchors = anchors
        self.num_classes = num_classes
        self.assigner = assigner or OverlapAssigner(positive=0.5, negative=0.4, least_best=0.0)
        self.alpha, self.gamma = alpha, gamma
        self.regression, self.beta = regression, beta
        self.pre_nms, self.score_threshold = pre_nms, score_threshold
        self.nms, self.nms_threshold = nms, nms_threshold
        self.max_per_image = max_per_image
        self.cls_convs = _tower(channels, convs)
        self.reg_convs = _tower(channels, convs)
        self.retina_cls = nn.Conv2d(channels, anchors.per_cell * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors.per_cell * 4, 3, padding=1)
        for conv in (*self.cls_convs, *self.reg_convs, self.retina_cls, self.retina_reg):
            init_normal(conv)
        init_normal(self.retina_cls, bias=-math.log((1 - prior) / prior))

    def forward(
        self, levels: Sequence[Tensor], batch: ImageBatch, truth: GroundTruth | None = None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """Losses with `truth`, else detections.

        Args:
            levels: [N, C, H, w] features of every stride of the anchors.
            batch: the images.
            truth: the objects, or None.

        Returns:
            None and "retina_classes" and "retina_boxes", sums divided by the number of positive
            anchors; or the detections of every image in pixels of the batch, best first, and {}.
        """
        logits, offsets = self.predict(levels)
        anchors = self.anchors.of_batch(levels, batch)
        if truth is not None:
            return None, self.losses(logits, offsets, anchors, truth)
        return self.detect(logits, offsets, anchors, batch), {}

    def predict(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [N, H*W*A, num_classes] and offsets [N, H*W*A, 4] of every level."""
        logits, offsets = [], []
        for level in levels:
            seen = moved = level
            for conv in self.cls_convs:
                seen = F.relu(conv(seen), inplace=True)
            for conv in self.reg_convs:
                moved = F.relu(conv(moved), inplace=True)
            logits.append(_rows(self.retina_cls(seen), self.num_classes))
            offsets.append(_rows(self.retina_reg(moved), 4))
        return logits, offsets

    def losses(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: BatchAnchors,
        truth: GroundTruth,
    ) -> dict[str, Tensor]:
        """The losses of `forward`."""
        matches = self.assigner(anchors.boxes, anchors.image_ids, truth)
        positives = (matches >= 0).nonzero()[:, 0]
        objects = matches[positives]
        flat = at_least_float32(anchors.select(logits))
        targets = torch.zeros_like(flat)
        targets[positives, truth.labels[objects] - 1] = 1
        focal = sigmoid_focal_loss(flat, targets, self.alpha, self.gamma, reduction="none")
        counts = (matches != IGNORED).to(focal.dtype)
        divisor = count_over_processes(len(positives), flat)
        moved, wanted = anchors.select(offsets)[positives], truth.boxes[objects]
        priors = anchors.boxes[positives]
        if self.regression == "diou":
            boxes = distance_box_iou_loss(decode(moved, priors, STDS), wanted, reduction="sum")
        else:
            boxes = box_loss(moved, wanted, priors, STDS, self.beta)
        return {
            "retina_classes": (focal * counts[:, None]).sum() / divisor,
            "retina_boxes": boxes / divisor,
        }

    @torch.no_grad()
    def detect(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: BatchAnchors,
        batch: ImageBatch,
    ) -> list[Detections]:
        """The detections of `forward`."""
        best = best_candidates(logits, offsets, anchors, batch, count=self.pre_nms, stds=STDS)
        good = (best.scores > self.score_threshold).nonzero()[:, 0]
        boxes, labels, image_ids = best.boxes[good], best.classes[good] + 1, best.image_ids[good]
        keep, scores = suppress(
            boxes,
            best.scores[good],
            labels,
            image_ids,
            method=self.nms,
            iou_threshold=self.nms_threshold,
            min_score=self.score_threshold,
            max_per_image=self.max_per_image,
        )
        return split_detections(
            boxes[keep], scores, labels[keep], image_ids[keep], len(batch.sizes)
        )


def _tower(channels: int, convs: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))


def _rows(x: Tensor, size: int) -> Tensor:
    """[N, A*size, H, W] -> [N, H*W*A, size]."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, size)
