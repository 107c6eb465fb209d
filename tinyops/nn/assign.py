"""Which object every box belongs to: by overlap, or by rank (RFLA); without an N x M matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth
from tinyops.ops import max_overlap, topk_per_target

BACKGROUND, IGNORED = -1, -2
DISTANCES = ("rfd_kl", "rfd_w", "nwd", "iou", "giou")
# (boxes [K, 4], image ids [K], truth) -> [K] int64: the object of every box, BACKGROUND or IGNORED
Assigner = Callable[[Tensor, Tensor, GroundTruth], Tensor]


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
    """The object of every box by IoU, with the rules of MaxIoUAssigner in mmdet.

    In this order: IGNORED; BACKGROUND where the best IoU is below `negative`; the best object where
    it is at least `positive`; the boxes of greatest IoU with an object, all equal ones, where that
    is at least `least_best`. A background box most of which is in an ignored region is IGNORED.

    Args:
        boxes: [K, 4] anchors or proposals of all images.
        image_ids: [K] int64, the image of each.
        truth: the objects.
        positive: IoU of a match.
        negative: IoU below which a box is background; at most `positive`.
        least_best: objects without a match take their best boxes from this IoU on (low-quality
            matches); None: they do not.
        ignore_above: of intersection / area of the box with an ignored region.

    Returns:
        [K] int64: the index of the object, BACKGROUND or IGNORED.
    """
    overlap, best = max_overlap(
        boxes, truth.boxes, image_ids=image_ids, target_image_ids=truth.image_ids, check=False
    )
    matches = torch.full_like(best, IGNORED)
    matches = torch.where(overlap < negative, BACKGROUND, matches)
    matches = torch.where((overlap >= positive) & (best >= 0), best, matches)
    if least_best is not None and len(truth.boxes):
        taken = topk_per_target(
            boxes,
            truth.boxes,
            1,
            all_ties=True,
            min_value=least_best,
            image_ids=image_ids,
            target_image_ids=truth.image_ids,
            check=False,
        )[-1]
        matches = torch.where(taken >= 0, taken, matches)
    return _ignore(matches, boxes, image_ids, truth, ignore_above)


class OverlapAssigner(nn.Module):
    """`match_by_overlap` with these settings."""

    def __init__(
        self,
        *,
        positive: float,
        negative: float,
        least_best: float | None = None,
        ignore_above: float = 0.5,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "positive": positive,
            "negative": negative,
            "least_best": least_best,
            "ignore_above": ignore_above,
        }

    def forward(self, boxes: Tensor, image_ids: Tensor, truth: GroundTruth) -> Tensor:
        """The object of every box, see `match_by_overlap`."""
        return match_by_overlap(boxes, image_ids, truth, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class HierarchicalAssigner(nn.Module):
    """RFLA's assignment by rank in two steps (Xu et al. 2022, section 3.3), for tiny objects.

    Every object takes the `topk[0]` boxes nearest to it, however far they are. Then all boxes
    shrink by `decay` about their centres, and every object takes its `topk[1]` nearest of these,
    where the first step has not given them away. In each step boxes as near as the last one are
    taken, too, and later objects overwrite earlier ones. All other boxes are background, or IGNORED
    where the shrunk one is near an object (`sure`) or most of it in an ignored region.

    The boxes that come in are not changed. In the released code they shrink for good, so that
    networks learn offsets from boxes 0.9 times as large as those that they move when detecting.

    Args:
        topk: boxes of every object in the two steps.
        decay: of the second step, the paper's beta.
        distance: "rfd_kl", "rfd_w", "nwd", "iou" or "giou", see `tinyops.ops.max_overlap`.
        sure: nearness in 0..1 from which a box that no object takes is not background.
        ignore_above: as in `match_by_overlap`.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        topk: Sequence[int] = (3, 1),
        *,
        decay: float = 0.9,
        distance: str = "rfd_kl",
        sure: float = 0.8,
        ignore_above: float = 0.5,
    ) -> None:
        super().__init__()
        if len(topk) != 2 or min(topk) < 1:
            raise ValueError(f"topk must be two numbers from 1 on, got {topk}")
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {decay}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
        self.topk = (topk[0], topk[1])
        self.decay, self.distance = decay, distance
        self.sure, self.ignore_above = sure, ignore_above

    def forward(self, boxes: Tensor, image_ids: Tensor, truth: GroundTruth) -> Tensor:
        """The object of every box.

        Args:
            boxes: [K, 4] anchors of all images.
            image_ids: [K] int64, the image of each.
            truth: the objects. One without width or height takes no box by "rfd_kl".

        Returns:
            [K] int64: the index of the object, BACKGROUND or IGNORED.
        """
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        halves = (boxes[:, 2:] - boxes[:, :2]) * (self.decay / 2)
        shrunk = torch.cat([centres - halves, centres + halves], 1)
        nearness, _ = max_overlap(
            shrunk,
            truth.boxes,
            mode=self.distance,
            image_ids=image_ids,
            target_image_ids=truth.image_ids,
            check=False,
        )
        first = self._take(boxes, image_ids, truth, self.topk[0])
        second = self._take(shrunk, image_ids, truth, self.topk[1])
        matches = torch.where(first >= 0, first, second)
        matches = torch.where((matches < 0) & (nearness >= self.sure), IGNORED, matches)
        return _ignore(matches, boxes, image_ids, truth, self.ignore_above)

    def _take(self, boxes: Tensor, image_ids: Tensor, truth: GroundTruth, k: int) -> Tensor:
        """[K] int64: the last object among whose k nearest boxes a box is, or BACKGROUND."""
        return topk_per_target(
            boxes,
            truth.boxes,
            k,
            mode=self.distance,
            all_ties=True,
            min_value=-1.0,  # of "giou", where boxes are apart
            image_ids=image_ids,
            target_image_ids=truth.image_ids,
            check=False,
        )[-1]

    def extra_repr(self) -> str:
        return (
            f"topk={self.topk}, decay={self.decay}, distance={self.distance!r}, sure={self.sure}, "
            f"ignore_above={self.ignore_above}"
        )


def _ignore(
    matches: Tensor, boxes: Tensor, image_ids: Tensor, truth: GroundTruth, above: float
) -> Tensor:
    """Background boxes of which a greater share is in an ignored region become IGNORED."""
    if not len(truth.ignored_boxes):
        return matches
    inside, _ = max_overlap(
        boxes,
        truth.ignored_boxes,
        mode="iof_box",
        image_ids=image_ids,
        target_image_ids=truth.ignored_image_ids,
        check=False,
    )
    return torch.where((matches == BACKGROUND) & (inside > above), IGNORED, matches)
