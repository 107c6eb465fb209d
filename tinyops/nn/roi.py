"""The second stage of two-stage detectors: features of proposals, their classes and boxes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from tinyops.nn.assign import BACKGROUND, match_by_overlap
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.boxes import clip, decode
from tinyops.nn.distributed import count_over_processes
from tinyops.nn.losses import at_least_float32, box_losses
from tinyops.nn.postprocess import SUPPRESSIONS, Detections, split_detections, suppress
from tinyops.nn.rpn import Proposals
from tinyops.nn.sampling import HardSampler, RandomSampler

Stds = tuple[float, float, float, float]


def sides_of(boxes: Tensor) -> Tensor:
    """[K] the side of the square of the area of every box [K, 4]."""
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()


class RoIPool(nn.Module):
    """Features of boxes of all sizes, each from the one level of a pyramid that fits its size.

    Feature Pyramid Networks, eq. 1, with RoIAlign without rounding (aligned=True, as many samples
    per bin as it has cells). A box of side s is seen on level floor(log2(s / finest_scale)), from 0
    to the last.

    Args:
        strides: pixels per cell of every level that is pooled from, the finest first.
        size: height and width of the pooled features.
        finest_scale: boxes of less than twice this side, in pixels, are seen on level 0.
    """

    def __init__(
        self, strides: tuple[int, ...] = (4, 8, 16, 32), size: int = 7, finest_scale: float = 56
    ) -> None:
        super().__init__()
        self.strides = strides
        self.size = size
        self.finest_scale = finest_scale

    def choose_levels(self, boxes: Tensor) -> Tensor:
        """The level [K] int64 of every box [K, 4]."""
        levels = (
            (sides_of(boxes) / self.finest_scale + 1e-6).log2().floor()
        )  # 1e-6: as released in mmdet
        return levels.clamp(0, len(self.strides) - 1).long()

    def forward(self, levels: list[Tensor], boxes: Tensor, image_ids: Tensor) -> Tensor:
        """Pool.

        Args:
            levels: [N, C, h, w] each, from the finest on; those beyond the strides are not used.
            boxes: [K, 4] in pixels of the batch.
            image_ids: [K] int64.

        Returns:
            [K, C, size, size] in the dtype of the levels; coordinates are float32 at least.

        Raises:
            ValueError: for fewer levels than strides.
        """
        if len(levels) < len(self.strides):
            raise ValueError(f"levels must be at least {len(self.strides)}, got {len(levels)}")
        dtype = torch.promote_types(levels[0].dtype, torch.float32)  # half would round coordinates
        chosen = self.choose_levels(boxes)
        order = chosen.argsort(stable=True)
        rois = torch.cat([image_ids[:, None].to(dtype), boxes.to(dtype)], 1)[order]
        counts = chosen.bincount(minlength=len(self.strides)).tolist()  # the one synchronisation
        pooled = [  # also of no boxes: so every level has a gradient
            roi_align(level.to(dtype), part, self.size, 1 / stride, aligned=True)
            for level, part, stride in zip(levels, rois.split(counts), self.strides, strict=False)
        ]
        return torch.cat(pooled).to(levels[0].dtype)[order.argsort()]


class BoxHead(nn.Module):
    """Class and box of pooled features by two shared linear layers (Fast R-CNN on FPN).

    Args:
        channels: of the pooled features.
        size: their height and width.
        hidden: width of the shared layers.
        num_classes: of objects.
        class_agnostic: one box for all classes, else one for each.
    """

    def __init__(
        self,
        channels: int = 256,
        size: int = 7,
        hidden: int = 1024,
        num_classes: int = 1,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        shared = nn.Linear(channels * size * size, hidden), nn.Linear(hidden, hidden)
        self.shared_fcs = nn.ModuleList(shared)
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)
        for layer in shared:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for layer in (*shared, self.fc_cls, self.fc_reg):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [K, 1 + num_classes], background first, and offsets [K, num_classes or 1, 4].

        Args:
            features: [K, channels, size, size].
        """
        x = features.flatten(1)
        for layer in self.shared_fcs:
            x = layer(x).relu()
        return self.fc_cls(x), self.fc_reg(x).unflatten(1, (-1, 4))


@dataclass(frozen=True)
class Samples:
    """The boxes of a batch that a second stage learns from; the positives come first.

    Attributes:
        boxes: [S, 4].
        scores: [S] objectness.
        image_ids: [S] int64.
        objects: [P] int64, the object of each of the first P boxes.
        added: [S] bool, boxes that are no proposals but objects.
    """

    boxes: Tensor
    scores: Tensor
    image_ids: Tensor
    objects: Tensor
    added: Tensor


@dataclass(frozen=True)
class Candidates(Proposals):
    """What a second stage may learn from: proposals, and then objects.

    Attributes:
        matches: [R] int64, the object of each, BACKGROUND or IGNORED.
        proposals: how many are no objects.
    """

    matches: Tensor
    proposals: int

    def take(self, positives: Tensor, negatives: Tensor) -> Samples:
        """The candidates of these indices [P] and [Q]."""
        chosen = torch.cat([positives, negatives])
        return Samples(
            self.boxes[chosen],
            self.scores[chosen],
            self.image_ids[chosen],
            self.matches[positives],
            chosen >= self.proposals,
        )


class RoIHeads(nn.Module):
    """Classes and better boxes for proposals, and their losses (Fast R-CNN, as in mmdet).

    Args:
        pool: features of boxes.
        head: features -> logits, offsets.
        sampler: of the boxes to learn from; default: 512 of every image, up to a quarter of them
            positive, drawn evenly.
        positive: IoU from which on a proposal belongs to an object.
        negative: IoU below which it is background.
        ignore_above: share of a background proposal inside ignored regions above which it is
            ignored.
        stds: divisors of the four offsets.
        beta: where smooth L1 turns from a parabola to a line; 0: L1.
        score_threshold: detections have a greater score; with Soft-NMS also after it.
        nms: how boxes of a class that overlap are thinned, a word of `SUPPRESSIONS`.
        nms_threshold: IoU above which they do.
        max_per_image: detections.
    """

    def __init__(
        self,
        pool: RoIPool,
        head: BoxHead,
        *,
        sampler: RandomSampler | None = None,
        positive: float = 0.5,
        negative: float = 0.5,
        ignore_above: float = 0.5,
        stds: Stds = (0.1, 0.1, 0.2, 0.2),
        beta: float = 0.0,
        score_threshold: float = 0.05,
        nms: str = "nms",
        nms_threshold: float = 0.5,
        max_per_image: int = 100,
    ) -> None:
        super().__init__()
        if nms not in SUPPRESSIONS:
            raise ValueError(f"nms must be one of {SUPPRESSIONS}, got {nms!r}")
        self.pool = pool
        self.head = head
        self.sampler = sampler or RandomSampler(512, 0.25)
        self.positive = positive
        self.negative = negative
        self.ignore_above = ignore_above
        self.stds = stds
        self.beta = beta
        self.score_threshold = score_threshold
        self.nms = nms
        self.nms_threshold = nms_threshold
        self.max_per_image = max_per_image

    def forward(
        self,
        levels: list[Tensor],
        proposals: Proposals,
        batch: ImageBatch,
        truth: GroundTruth | None = None,
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """Losses where there is truth, detections elsewhere.

        Args:
            levels: [N, C, h, w] each, from the finest on.
            proposals: of all images.
            batch: the images.
            truth: their objects, in training.

        Returns:
            None and the losses, or the detections of every image, best first, and no losses.
        """
        if truth is not None:
            samples = self.sample(proposals, truth, len(batch.sizes), levels)
            logits, offsets = self.predict(levels, samples.boxes, samples.image_ids)
            return None, self.losses(logits, offsets, samples, truth)
        boxes, image_ids = proposals.boxes, proposals.image_ids
        logits, offsets = self.predict(levels, boxes, image_ids)
        return self.detect(logits, offsets, boxes, image_ids, batch), {}

    @torch.no_grad()
    def sample(
        self,
        proposals: Proposals,
        truth: GroundTruth,
        num_images: int,
        levels: list[Tensor] | None = None,
    ) -> Samples:
        """Choose what to learn from among proposals and objects, which count as proposals too.

        With `HardSampler` all of them are looked at before; that alone needs the levels.
        """
        every = self.candidates(proposals, truth)
        scores = every.scores
        if isinstance(self.sampler, HardSampler):
            assert levels is not None
            scores = self._losses_of_all(levels, every, truth)
        return every.take(
            *self.sampler(every.matches, every.boxes, every.image_ids, truth, num_images, scores)
        )

    def candidates(self, proposals: Proposals, truth: GroundTruth) -> Candidates:
        """Proposals and objects, and which object each belongs to."""
        count, added = len(proposals.boxes), len(truth.boxes)
        matches = match_by_overlap(
            proposals.boxes,
            proposals.image_ids,
            truth,
            positive=self.positive,
            negative=self.negative,
            ignore_above=self.ignore_above,
        )
        return Candidates(
            torch.cat([proposals.boxes, truth.boxes]),
            torch.cat([proposals.scores, proposals.scores.new_ones(added)]),
            torch.cat([proposals.image_ids, truth.image_ids]),
            torch.cat([matches, torch.arange(added, device=matches.device)]),
            count,
        )

    def _losses_of_all(self, levels: list[Tensor], every: Candidates, truth: GroundTruth) -> Tensor:
        """[R] the loss of every candidate, class and box; 0 of those that are IGNORED."""
        positives = (every.matches >= 0).nonzero()[:, 0]
        negatives = (every.matches == BACKGROUND).nonzero()[:, 0]
        used = every.take(positives, negatives)
        logits, offsets = self.predict(levels, used.boxes, used.image_ids)
        classes, boxes = self.losses_of_each(logits, offsets, used, truth)
        losses = classes.new_zeros(len(every.boxes))
        losses[negatives] = classes[len(positives) :]
        losses[positives] = classes[: len(positives)] + boxes
        return losses

    def predict(
        self, levels: list[Tensor], boxes: Tensor, image_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [K, 1 + num_classes] and offsets [K, num_classes or 1, 4], float32 at least."""
        logits, offsets = self.head(self.pool(levels, boxes, image_ids))
        return at_least_float32(logits), at_least_float32(offsets)

    def losses(
        self, logits: Tensor, offsets: Tensor, samples: Samples, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """Cross entropy of the samples and L1 of the offsets of positives, per sample."""
        classes, boxes = self.losses_of_each(logits, offsets, samples, truth)
        divisor = count_over_processes(len(classes), logits)
        return {"roi_classes": classes.sum() / divisor, "roi_boxes": boxes.sum() / divisor}

    def losses_of_each(
        self, logits: Tensor, offsets: Tensor, samples: Samples, truth: GroundTruth
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy [S] of the samples and L1 [P] of the offsets of positives."""
        objects = samples.objects
        count = len(objects)
        labels = samples.image_ids.new_zeros(len(samples.boxes))
        labels[:count] = truth.labels[objects]
        boxes = box_losses(
            self._of_label(offsets[:count], labels[:count]),
            truth.boxes[objects],
            samples.boxes[:count],
            self.stds,
            self.beta,
        )
        return F.cross_entropy(logits, labels, reduction="none"), boxes

    def detect(
        self,
        logits: Tensor,
        offsets: Tensor,
        boxes: Tensor,
        image_ids: Tensor,
        batch: ImageBatch,
    ) -> list[Detections]:
        """Detections of every image, from the predictions for boxes [K, 4]."""
        scores = logits.softmax(1)[:, 1:]
        rows, classes = (scores > self.score_threshold).nonzero(as_tuple=True)
        labels = classes + 1
        image_ids = image_ids[rows]
        boxes = self.move(self._of_label(offsets[rows], labels), boxes[rows], image_ids, batch)
        keep, scores = suppress(
            boxes,
            scores[rows, classes],
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

    def move(self, offsets: Tensor, boxes: Tensor, image_ids: Tensor, batch: ImageBatch) -> Tensor:
        """Boxes [K, 4] moved by offsets [K, 4], and cut at the borders of their images."""
        return clip(decode(offsets, boxes, self.stds), batch.size_table()[image_ids])

    def _of_label(self, offsets: Tensor, labels: Tensor) -> Tensor:
        """The offsets [K, 4] of these labels [K] from those of all classes or of any."""
        if self.head.class_agnostic:
            return offsets[:, 0]
        return offsets[torch.arange(len(labels), device=labels.device), labels - 1]
