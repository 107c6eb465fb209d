"""The loss of the context attention maps (SSPNet, section II-E)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.distributed import count_over_processes
from tinyops.nn.losses import at_least_float32
from tinyops.ops import attention_targets


class AttentionLoss(nn.Module):
    """Binary cross-entropy on hard cells, and dice, as SSPNet's released code computes them.

    The target of a cell is above 0 on objects of its level, below 0 on other objects, else 0 (see
    `attention_targets`; later boxes cover earlier ones, and padding is background). Per level:

    - Cross-entropy counts all cells on objects and, of the background of each image, the 3 P with
      the highest attention (and equals of the last), P being the image's positive cells; without
      any, as many as 5 % of all cells of the image. Targets below 0 count as 0 with weight 3. The
      sum is divided by the number of counted cells of the batch.
    - Dice is 1 - 2 (sum(p t) + 1) / (sum(p^2) + sum(t) + 2) with t = 1 on positive cells, the
      mean over the images, where images without positive cells have 0. The sums are over positive
      cells alone, as released, or over all cells.

    Background cells that touch an ignored region do not count in either; what `truth` has as
    objects there does. The levels are added up. Everything is computed from logits, in float32 at
    least.

    Args:
        strides: of the levels; objects of s to 8 s pixels are those of stride s.
        strict_bands: as released, an object of exactly s pixels is none of stride s.
        dice: "positives" or "full": the cells that dice counts.
        bce_weight, dice_weight: alpha and beta of eq. 8.
        out_of_scale_weight: of cells with targets below 0.
        negatives_per_positive: of cells of background.
        fraction_without_positives: of all cells of an image.

    Raises:
        ValueError: for another `dice`.
    """

    def __init__(
        self,
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        strict_bands: bool = True,
        dice: str = "positives",
        bce_weight: float = 0.01,
        dice_weight: float = 1.0,
        out_of_scale_weight: float = 3.0,
        negatives_per_positive: int = 3,
        fraction_without_positives: float = 0.05,
    ) -> None:
        super().__init__()
        if dice not in ("positives", "full"):
            raise ValueError(f"dice must be 'positives' or 'full', got {dice!r}")
        self.strides = tuple(strides)
        self.strict_bands = strict_bands
        self.dice = dice
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.out_of_scale_weight = out_of_scale_weight
        self.negatives_per_positive = negatives_per_positive
        self.fraction_without_positives = fraction_without_positives

    def forward(
        self, logits: Sequence[Tensor], batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """Both terms, weighted.

        Args:
            logits: [N, 1, ceil(H / stride), ceil(W / stride)] per level.
            batch: its pixels are [N, 3, H, W].
            truth: the objects.

        Returns:
            "attention_bce" and "attention_dice", scalars.
        """
        sizes = (batch.pixels.shape[0], *batch.pixels.shape[-2:])
        targets = attention_targets(
            truth.boxes,
            truth.image_ids,
            sizes,
            strides=self.strides,
            bands=[(s, 8 * s) for s in self.strides],
            strict=self.strict_bands,
            check=False,
        )
        ignored: Sequence[Tensor | None] = [None] * len(targets)
        if len(truth.ignored_boxes):
            ignored = attention_targets(  # 1 or -1 in all regions of a level, whatever their size
                truth.ignored_boxes,
                truth.ignored_image_ids,
                sizes,
                strides=self.strides,
                bands=[(0, 0)] * len(self.strides),
                check=False,
            )
        bce, dice = [], []
        for x, target, region in zip(logits, targets, ignored, strict=True):
            x = at_least_float32(x).flatten(1)  # [N, cells]
            target = target.flatten(1).to(x.dtype)
            background = target == 0
            if region is not None:
                background &= region.flatten(1) == 0
            bce.append(self._cross_entropy(x, target, background))
            dice.append(self._dice(x, target > 0, background | (target < 0)))
        return {
            "attention_bce": self.bce_weight * torch.stack(bce).sum(),
            "attention_dice": self.dice_weight * torch.stack(dice).sum(),
        }

    def _cross_entropy(self, x: Tensor, target: Tensor, background: Tensor) -> Tensor:
        cells = x.shape[1]
        positives, available = (target > 0).sum(1), background.sum(1)
        wanted = torch.where(
            positives > 0,
            self.negatives_per_positive * positives,
            int(self.fraction_without_positives * cells),
        ).minimum(available)
        scores = torch.where(background, x.detach().sigmoid(), -1.0)
        ranked = scores.sort(1, descending=True).values
        least = ranked.gather(1, (wanted - 1).clamp(min=0)[:, None])
        kept = (target != 0) | (background & (scores >= least) & (wanted > 0)[:, None])
        losses = F.binary_cross_entropy_with_logits(x, target.clamp(min=0), reduction="none")
        weights = torch.where(target < 0, self.out_of_scale_weight, 1.0) * kept
        return (losses * weights).sum() / count_over_processes(kept.sum(), x)

    def _dice(self, x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        counted = positive if self.dice == "positives" else positive | negative
        p = x.sigmoid() * counted
        objects = positive.sum(1)
        shared, total = (p * positive).sum(1), p.square().sum(1) + objects
        losses = 1 - 2 * (shared + 1) / (total + 2)
        return (losses * (objects > 0)).mean()
