"""Region proposal network (Ren et al. 2015), on all levels of a pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.anchors import AnchorGenerator, BatchAnchors
from tinyops.nn.assign import Assigner, OverlapAssigner
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.dense import best_candidates, init_normal
from tinyops.nn.distributed import count_over_processes
from tinyops.nn.losses import box_loss, objectness_loss
from tinyops.nn.patches import patches_3x3
from tinyops.nn.postprocess import first_per_image
from tinyops.nn.sampling import RandomSampler
from tinyops.ops import nms

STDS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Proposals:
    """Boxes that may hold an object, image after image, best first in each.

    Attributes:
        boxes: [R, 4] x1 y1 x2 y2 in pixels of the batch, without gradient.
        scores: [R] in 0..1.
        image_ids: [R] int64, rising.
    """

    boxes: Tensor
    scores: Tensor
    image_ids: Tensor


class RegionProposalNetwork(nn.Module):
    """Object or not, and a better box, for every anchor.

    The defaults are mmdet's Faster R-CNN with SSPNet's limits of proposals.

    Args:
        channels: of every level.
        anchors: of the levels.
        sampler: of the anchors that the losses are computed on; default: 256 of every image, up to
            half of them positive, drawn evenly.
        assigner: says which object every anchor belongs to; default: by IoU, an object from 0.7
            on, background below 0.3, and objects take their best anchors from 0.3 on.
        pre_nms: how many of the best anchors of every level and image are decoded, in training and
            in evaluation.
        post_nms: how many proposals of every image there are at most, likewise.
        nms_threshold: IoU above which the worse of two proposals of one level goes.
        beta: of the smooth L1 loss of the offsets; 0 is L1.
        whole_anchors: the losses are computed on anchors that do not cross the border of their
            image only (Cascade R-CNN in mmdet: allowed_border=0).
    """

    def __init__(
        self,
        channels: int,
        anchors: AnchorGenerator,
        *,
        sampler: RandomSampler | None = None,
        assigner: Assigner | None = None,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_threshold: float = 0.7,
        beta: float = 0.0,
        whole_anchors: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.sampler = sampler or RandomSampler(256, 0.5)
        self.assigner = assigner or OverlapAssigner(positive=0.7, negative=0.3, least_best=0.3)
        self.pre_nms, self.post_nms, self.nms_threshold = pre_nms, post_nms, nms_threshold
        self.beta = beta
        self.whole_anchors = whole_anchors
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, anchors.per_cell, 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * anchors.per_cell, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            init_normal(conv)

    def forward(
        self, levels: Sequence[Tensor], batch: ImageBatch, truth: GroundTruth | None = None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals, and with `truth` the losses.

        Args:
            levels: [N, C, H, W] features of every stride of the anchors.
            batch: the images.
            truth: the objects, or None.

        Returns:
            The proposals, and "rpn_objectness" and "rpn_boxes": sums over the sampled anchors
            divided by their number; {} without `truth`.
        """
        anchors = self.anchors.of_batch(levels, batch)
        if truth is None:
            return self.propose(*self.predict(levels), anchors, batch), {}
        with torch.no_grad():  # the losses have a gradient at samples alone
            predictions = self.predict(levels)
        losses = self.losses(levels, anchors, batch, truth)
        return self.propose(*predictions, anchors, batch), losses

    def predict(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [N, H*W*A] and offsets [N, H*W*A, 4] of every level."""
        logits, offsets = [], []
        for level in levels:
            x = F.relu(self.rpn_conv(level), inplace=True)
            logits.append(self.rpn_cls(x).permute(0, 2, 3, 1).flatten(1))
            reg = self.rpn_reg(x).permute(0, 2, 3, 1)  # [N, H, W, A*4]
            offsets.append(reg.reshape(len(reg), -1, 4))
        return logits, offsets

    def predict_at(
        self, levels: Sequence[Tensor], anchors: BatchAnchors, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The predictions of `predict` for some anchors alone, and so their gradients.

        Training looks at a few hundred of 10^5 anchors. The backward pass of the dense convolutions
        is then a tenth of the whole detector's, nearly all of it with zeros.

        Args:
            levels: as in `forward`.
            anchors: of the batch.
            chosen: [S] int64, rows of `anchors.boxes`.

        Returns:
            Logits [S] and offsets [S, 4].
        """
        flat = chosen if anchors.rows is None else anchors.rows[chosen]
        counts = torch.tensor([len(x) for x in anchors.levels], device=flat.device)
        widths = torch.tensor([x.shape[-1] for x in levels], device=flat.device)
        ends = counts.cumsum(0)
        image_ids, flat = flat // ends[-1], flat % ends[-1]
        level_ids = torch.searchsorted(ends, flat, right=True)
        flat = flat - (ends - counts)[level_ids]
        cells, kinds = flat // self.anchors.per_cell, flat % self.anchors.per_cell
        rows, columns = cells // widths[level_ids], cells % widths[level_ids]
        seen = patches_3x3(levels, level_ids, image_ids, rows, columns)
        x = F.relu(_linear(self.rpn_conv, seen))  # [S, C]
        every = torch.arange(len(kinds), device=kinds.device)
        offsets = _linear(self.rpn_reg, x).unflatten(1, (-1, 4))
        return _linear(self.rpn_cls, x)[every, kinds], offsets[every, kinds]

    def losses(
        self,
        levels: Sequence[Tensor],
        anchors: BatchAnchors,
        batch: ImageBatch,
        truth: GroundTruth,
    ) -> dict[str, Tensor]:
        """The losses of `forward`."""
        if self.whole_anchors:
            anchors = anchors.whole(batch)
        matches = self.assigner(anchors.boxes, anchors.image_ids, truth)
        positives, negatives = self.sampler(
            matches, anchors.boxes, anchors.image_ids, truth, len(batch.sizes)
        )
        count = len(positives)
        logits, offsets = self.predict_at(levels, anchors, torch.cat([positives, negatives]))
        divisor = count_over_processes(len(logits), logits)
        boxes = box_loss(
            offsets[:count],
            truth.boxes[matches[positives]],
            anchors.boxes[positives],
            STDS,
            self.beta,
        )
        objectness = objectness_loss(logits[:count], logits[count:])
        return {"rpn_objectness": objectness / divisor, "rpn_boxes": boxes / divisor}

    @torch.no_grad()
    def propose(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: BatchAnchors,
        batch: ImageBatch,
    ) -> Proposals:
        """The best boxes of every image, duplicates of a level removed."""
        phase = 0 if self.training else 1
        best = best_candidates(
            [x[..., None] for x in logits],
            offsets,
            anchors,
            batch,
            count=self.pre_nms[phase],
            stds=STDS,
        )
        keep = nms(
            best.boxes,
            best.scores,
            self.nms_threshold,
            labels=best.level_ids,
            image_ids=best.image_ids,
            check=False,
        )
        keep = keep[first_per_image(best.image_ids[keep], self.post_nms[phase])]
        return Proposals(best.boxes[keep], best.scores[keep], best.image_ids[keep])


def _linear(conv: nn.Conv2d, patches: Tensor) -> Tensor:
    """A convolution at patches [S, C, ...] of the size of its kernel: [S, out channels]."""
    return F.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)
