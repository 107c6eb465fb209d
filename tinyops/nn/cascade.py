"""Cascade R-CNN: second stages in a row, each of which gets the boxes of the one before."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.postprocess import Detections
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool, Samples, Stds
from tinyops.nn.rpn import Proposals
from tinyops.nn.sampling import RandomSampler


class CascadeRoIHeads(nn.Module):
    """Stages of rising quality (Cai and Vasconcelos 2018; defaults of mmdet).

    In training a stage learns from the boxes that the stage before was trained on, as it moved
    them, without those that were added to them as objects. At test, the class is that of the mean
    of all stages' logits, the box that of the last stage.

    Args:
        pool: features of boxes, shared by all stages.
        heads: one for each stage, class-agnostic.
        sampler: of the boxes to learn from; default: that of `RoIHeads`.
        overlaps: IoU from which on a box is positive, of each stage; below, it is background.
        stds: divisors of the four offsets, of each stage.
        weights: of the losses of each stage.
        beta: where smooth L1 turns from a parabola to a line.
        score_threshold: as in `RoIHeads`, and so are the next three.
        nms: how boxes are thinned.
        nms_threshold: of IoU.
        max_per_image: detections.

    Raises:
        ValueError: for settings of another number of stages, and heads with boxes per class.
    """

    def __init__(
        self,
        pool: RoIPool,
        heads: Sequence[BoxHead],
        *,
        sampler: RandomSampler | None = None,
        overlaps: Sequence[float] = (0.5, 0.6, 0.7),
        stds: Sequence[Stds] = (
            (0.1, 0.1, 0.2, 0.2),
            (0.05, 0.05, 0.1, 0.1),
            (0.033, 0.033, 0.067, 0.067),
        ),
        weights: Sequence[float] = (1.0, 0.5, 0.25),
        beta: float = 1.0,
        score_threshold: float = 0.05,
        nms: str = "nms",
        nms_threshold: float = 0.5,
        max_per_image: int = 100,
    ) -> None:
        super().__init__()
        for name, values in (("overlaps", overlaps), ("stds", stds), ("weights", weights)):
            if len(values) != len(heads):
                raise ValueError(f"{name} must be one per head ({len(heads)}), got {len(values)}")
        if not all(head.class_agnostic for head in heads):
            raise ValueError("heads must be class-agnostic, got one with boxes per class")
        self.weights = tuple(weights)
        self.stages: Sequence[RoIHeads] = nn.ModuleList(  # type: ignore[assignment]
            RoIHeads(
                pool,
                head,
                sampler=sampler,
                positive=overlap,
                negative=overlap,
                stds=scale,
                beta=beta,
                score_threshold=score_threshold,
                nms=nms,
                nms_threshold=nms_threshold,
                max_per_image=max_per_image,
            )
            for head, overlap, scale in zip(heads, overlaps, stds, strict=True)
        )

    def forward(
        self,
        levels: list[Tensor],
        proposals: Proposals,
        batch: ImageBatch,
        truth: GroundTruth | None = None,
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """As `RoIHeads.forward`, with the losses of every stage."""
        if truth is not None:
            return None, self._train(levels, proposals, batch, truth)
        boxes, image_ids = proposals.boxes, proposals.image_ids
        total, offsets = self.stages[0].predict(levels, boxes, image_ids)
        for before, stage in pairwise(self.stages):
            boxes = before.move(offsets[:, 0], boxes, image_ids, batch)
            logits, offsets = stage.predict(levels, boxes, image_ids)
            total = total + logits
        mean = total / len(self.stages)
        return self.stages[-1].detect(mean, offsets, boxes, image_ids, batch), {}

    def _train(
        self, levels: list[Tensor], proposals: Proposals, batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        losses = {}
        for k, stage in enumerate(self.stages):
            samples = stage.sample(proposals, truth, len(batch.sizes), levels)
            logits, offsets = stage.predict(levels, samples.boxes, samples.image_ids)
            for name, loss in stage.losses(logits, offsets, samples, truth).items():
                losses[f"stage{k + 1}_{name}"] = self.weights[k] * loss
            if k + 1 < len(self.stages):
                proposals = self._pass_on(stage, samples, offsets, batch)
        return losses

    @staticmethod
    @torch.no_grad()
    def _pass_on(
        stage: RoIHeads, samples: Samples, offsets: Tensor, batch: ImageBatch
    ) -> Proposals:
        """The samples of a stage as it moved them, without the objects added to them."""
        boxes = stage.move(offsets[:, 0], samples.boxes, samples.image_ids, batch)
        rows = (~samples.added).nonzero().squeeze(1)
        return Proposals(boxes[rows], samples.scores[rows], samples.image_ids[rows])
