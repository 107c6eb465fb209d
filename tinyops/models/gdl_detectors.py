"""Detectors that restore small objects before they look at them again (GDL; Gu et al., 2020)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.models.phases import PhasedDetector
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.crops import crop_boxes
from tinyops.nn.discriminator import Discriminator
from tinyops.nn.distributed import count_over_processes
from tinyops.nn.gdl import (
    as_constant,
    objectness_of_classes,
    realness_loss,
    squared_error,
    total_variation,
)
from tinyops.nn.generator import Generator
from tinyops.nn.losses import at_least_float32, box_loss
from tinyops.nn.postprocess import Detections, first_per_image
from tinyops.nn.roi import RoIHeads, Samples
from tinyops.nn.sampling import RandomSampler

Verdict = tuple[Tensor, Tensor, Tensor | None]  # logits, offsets, logits of being real
CHUNK = 64  # regions that are restored at once in evaluation, which bounds the memory


@dataclass(frozen=True)
class Weights:
    """Of the losses; the slides name those of the last three alpha, beta and gamma.

    Attributes:
        mse, tv: of the squared error and of the total variation.
        adversarial: of L_adv; 0: there is no game, and no head for it.
        classes, boxes: of L_cls and L_reg, for the generator and for the discriminator.
        saturating: L_adv as printed, see `tinyops.nn.gdl.realness_loss`.

    Raises:
        ValueError: for a weight below 0.
    """

    mse: float = 1.0
    tv: float = 1e-4
    adversarial: float = 0.0
    classes: float = 1.0
    boxes: float = 1.0
    saturating: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"weight {name} must be at least 0, got {value}")


class GDLDetector(PhasedDetector):
    """What the two readings of GDL share: phases, turns, and losses.

    First the detector learns alone; then the generator alone, with L_MSE and L_TV; then
    discriminator and generator take turns in every step, with all losses. Until the last phase,
    detections are those of the detector alone.
    """

    phases = ("detector", "generator", "adversarial")
    roi_heads: RoIHeads
    generator: Generator

    def __init__(
        self,
        *parts: nn.Module,
        generator: Generator,
        weights: Weights,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        self.generator = generator
        self.weights = weights

    @property
    def turns(self) -> tuple[str, ...]:
        """In the last phase the discriminator learns, then the generator."""
        return ("discriminator", "generator") if self.phase == "adversarial" else ()

    def learners(self) -> Iterable[nn.Module]:
        """See `PhasedDetector`."""
        if self.phase == "detector":
            return [self.backbone, self.neck, self.rpn, self.roi_heads]
        if self.phase == "generator":
            return [self.generator]
        return [self.generator, *self.judges()]

    def judges(self) -> Iterable[nn.Module]:
        """What learns in the turn of the discriminator."""
        raise NotImplementedError

    def heads(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.heads`."""
        if self.phase == "detector" or truth is None:
            return super().heads(levels, batch, truth)
        return None, self.restoration_losses(levels, batch, truth)

    def restoration_losses(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """The losses of the second phase, and of the present turn of the last one."""
        raise NotImplementedError

    def generate(self, low: Tensor) -> Tensor:
        """G(low), as a constant where it is the discriminator's turn."""
        if self.turn == "discriminator":
            with torch.no_grad():
                low = as_constant(self.generator, low)
            return low
        generated: Tensor = self.generator(low)
        return generated

    def ask(self, module: nn.Module, *inputs: Any) -> Any:
        """module(*inputs), where the module is a constant in the generator's turn."""
        return as_constant(module, *inputs) if self.turn == "generator" else module(*inputs)

    def similarity_losses(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        """L_MSE and L_TV."""
        return {
            "generator_mse": self.weights.mse * squared_error(generated, real),
            "generator_tv": self.weights.tv * total_variation(generated),
        }

    def verdict_losses(
        self,
        generated: Verdict,
        real: Verdict | None,
        samples: Samples,
        truth: GroundTruth,
        *,
        anchors: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """L_cls, L_reg and, if it has a weight, L_adv or the discriminator's part of the game.

        Args:
            generated: what the discriminator says of the samples, restored.
            real: of the same samples at high resolution, in the discriminator's turn.
            samples: the positives come first.
            truth: the objects.
            anchors: the losses of proposals; None: the objectness of a sample is that all classes
                of objects have together.
        """
        logits, offsets, realness = generated
        logits, offsets = at_least_float32(logits), at_least_float32(offsets)
        count = len(samples.objects)
        labels = samples.image_ids.new_zeros(len(samples.boxes))
        labels[:count] = truth.labels[samples.objects]
        classes = F.cross_entropy(logits, labels, reduction="sum")
        if anchors is None:
            classes = classes + objectness_of_classes(logits, labels)
        if real is not None:
            classes = classes + F.cross_entropy(at_least_float32(real[0]), labels, reduction="sum")
        columns = (labels[:count] - 1).clamp(max=offsets.shape[1] - 1)  # one box, or one per class
        boxes = box_loss(
            offsets[torch.arange(count, device=columns.device), columns],
            truth.boxes[samples.objects],
            samples.boxes[:count],
            self.roi_heads.stds,
            beta=1.0,
        )
        divisor = count_over_processes(len(labels), logits)
        classes, boxes = classes / divisor, boxes / divisor
        if anchors is not None:
            classes, boxes = classes + anchors["rpn_objectness"], boxes + anchors["rpn_boxes"]
        losses = {
            f"{self.turn}_classes": self.weights.classes * classes,
            f"{self.turn}_boxes": self.weights.boxes * boxes,
        }
        if realness is None:
            return losses
        if real is not None:
            assert real[2] is not None
            game = realness_loss(real[2], True) + realness_loss(realness, False)
        elif self.weights.saturating:
            game = -self.weights.adversarial * realness_loss(realness, False)
        else:
            game = self.weights.adversarial * realness_loss(realness, True)
        return {**losses, f"{self.turn}_game": game}


class CropGDL(GDLDetector):
    """GDL on the image: proposals of small objects are cut out, restored and looked at again.

    In training crops of all sizes are taken, large ones too, in which there is detail to be learnt:
    z_HR is the box and its surroundings resized to `upscale` * `size`, z_LR that averaged down to
    `size`. In evaluation boxes of which a side is below `small` are cut out at low resolution, and
    the discriminator's word on what the generator makes of them replaces that of the second stage.
    The others keep theirs, and all go through one suppression.

    Args:
        parts: backbone, neck, proposals and second stage (a `RoIHeads`).
        generator: of images of 3 channels.
        discriminator: of images of `upscale` * `size`.
        weights: of the losses.
        sampler: of the crops to learn from.
        size: height and width of a crop at low resolution.
        context: sides of a crop / sides of the box.
        small: boxes with a shorter side than this, in pixels, are restored in evaluation.
        most: of every image those that the second stage finds most likely to be objects.
        options: of `TwoStageDetector`.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(
        self,
        *parts: nn.Module,
        generator: Generator,
        discriminator: Discriminator,
        weights: Weights,
        sampler: RandomSampler,
        size: int = 32,
        context: float = 1.5,
        small: float = 32.0,
        most: int = 100,
        **options: Any,
    ) -> None:
        for name, value in (("size", size), ("context", context), ("small", small)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        super().__init__(*parts, generator=generator, weights=weights, **options)
        self.discriminator = discriminator
        self.sampler = sampler
        self.size, self.context, self.small, self.most = size, context, small, most
        self.set_phase(self.phases[0])

    def judges(self) -> Iterable[nn.Module]:
        """See `GDLDetector`."""
        return [self.discriminator]

    def restoration_losses(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """See `GDLDetector`."""
        proposals, _ = self.rpn(levels, batch)
        every = self.roi_heads.candidates(proposals, truth)
        samples = every.take(
            *self.sampler(every.matches, every.boxes, every.image_ids, truth, len(batch.sizes))
        )
        high = self.cut(batch, samples.boxes, samples.image_ids, self.generator.upscale)
        generated = self.generate(F.avg_pool2d(high, self.generator.upscale))
        losses = {}
        if self.turn != "discriminator":
            losses = self.similarity_losses(generated, high)
        if self.turn:
            verdict = self.ask(self.discriminator, generated)
            real = self.discriminator(high) if self.turn == "discriminator" else None
            losses |= self.verdict_losses(verdict, real, samples, truth)
        return losses

    def heads(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.heads`."""
        if truth is None and self.phase == "adversarial":
            return self.detect(levels, batch), {}
        return super().heads(levels, batch, truth)

    def detect(self, levels: list[Tensor], batch: ImageBatch) -> list[Detections]:
        """Detections of the last phase, in pixels of the batch."""
        proposals, _ = self.rpn(levels, batch)
        boxes, image_ids = proposals.boxes, proposals.image_ids
        logits, offsets = self.roi_heads.predict(levels, boxes, image_ids)
        rows = self.choose(boxes, image_ids, logits)
        for part in rows.split(CHUNK):
            low = self.cut(batch, boxes[part], image_ids[part])
            seen, moves, _ = self.discriminator(self.generator(low))
            logits[part], offsets[part] = seen.to(logits.dtype), moves.to(offsets.dtype)
        return self.roi_heads.detect(logits, offsets, boxes, image_ids, batch)

    def choose(self, boxes: Tensor, image_ids: Tensor, logits: Tensor) -> Tensor:
        """The rows [P] of the boxes [K, 4] that are restored in evaluation."""
        order = logits.softmax(1)[:, 0].argsort(stable=True)
        small = (boxes[:, 2:] - boxes[:, :2]).amin(1) < self.small
        order = order[small[order]]
        return order[first_per_image(image_ids[order], self.most)]

    def cut(self, batch: ImageBatch, boxes: Tensor, image_ids: Tensor, factor: int = 1) -> Tensor:
        """Crops [S, 3, size, size] at low resolution, or `factor` times as large ones.

        Those at low resolution are what averaging makes of those at high resolution.
        """
        return crop_boxes(
            batch.pixels,
            boxes,
            image_ids,
            factor * self.size,
            context=self.context,
            samples=2 * self.generator.upscale // factor,
        )


class FeatureGDL(GDLDetector):
    """GDL on features: the finest level is restored before proposals are made.

    The image has the high resolution, averaging 2 x 2 pixels gives the low one. z_HR is the finest
    level of the pyramid of the image, z_LR that of the smaller one, without gradient both: the
    detector is its own teacher. The levels of the smaller image, twice as coarse, follow on the
    restored one, so that proposals and second stage find the strides that they know. They are the
    discriminator: anchors are identified on what the generator made, and objectness, classes and
    boxes teach it. In evaluation of the last phase the backbone sees the smaller image alone.

    So small objects should have been enlarged before (`scale` = 2): the backbone then works at the
    size of the image as it came.

    Args:
        parts: backbone, neck, proposals and second stage (a `RoIHeads`).
        generator: of features, with an upscale of 2.
        critic: pooled features [S, C, size, size] -> logits [S] of being real; None without L_adv.
        weights: of the losses.
        options: of `TwoStageDetector`.

    Raises:
        ValueError: for another upscale.
    """

    def __init__(
        self,
        *parts: nn.Module,
        generator: Generator,
        critic: nn.Module | None,
        weights: Weights,
        **options: Any,
    ) -> None:
        if generator.upscale != 2:
            raise ValueError(f"generator must have an upscale of 2, got {generator.upscale}")
        super().__init__(*parts, generator=generator, weights=weights, **options)
        self.critic = critic
        self.set_phase(self.phases[0])

    def judges(self) -> Iterable[nn.Module]:
        """See `GDLDetector`."""
        return [x for x in (self.rpn, self.roi_heads, self.critic) if x is not None]

    def run(
        self, batch: ImageBatch, truth: GroundTruth | None
    ) -> tuple[list[Detections] | None, dict[str, Tensor]]:
        """See `Detector.run`."""
        if truth is not None or self.phase != "adversarial":
            return super().run(batch, truth)
        low = self.low_levels(batch)
        return self.heads([self.generator(low[0]), *low[:-1]], batch, None)

    def low_levels(self, batch: ImageBatch) -> list[Tensor]:
        """The pyramid of the images at half their size."""
        levels: list[Tensor] = self.neck(self.backbone(F.avg_pool2d(batch.pixels, 2)))[0]
        return levels

    def restoration_losses(
        self, levels: list[Tensor], batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """See `GDLDetector`."""
        low = self.low_levels(batch)
        generated = self.generate(low[0])
        losses = {}
        if self.turn != "discriminator":
            losses = self.similarity_losses(generated, levels[0])
        if self.turn:
            restored = [generated, *low[:-1]]
            proposals, anchors = self.ask(self.rpn, restored, batch, truth)
            samples = self.roi_heads.sample(proposals, truth, len(batch.sizes))
            real = self.judge(levels, samples) if self.turn == "discriminator" else None
            verdict = self.judge(restored, samples)
            losses |= self.verdict_losses(verdict, real, samples, truth, anchors=anchors)
        return losses

    def judge(self, levels: list[Tensor], samples: Samples) -> Verdict:
        """What second stage and critic say of the samples."""
        pooled = self.roi_heads.pool(levels, samples.boxes, samples.image_ids)
        logits, offsets = self.ask(self.roi_heads.head, pooled)
        return logits, offsets, None if self.critic is None else self.ask(self.critic, pooled)
