"""Soft-NMS (Bodla et al. 2017): overlapping boxes lose score instead of being removed."""

import math

import torch
from torch import Tensor

from tinyops.ops._boxes import (
    check_boxes,
    check_fraction,
    check_ids,
    check_scores,
    code,
    implement_by_copy,
    register_box_operator,
    unbacked_size,
)
from tinyops.ops._glue import check

METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.05,
    method: str = "linear",
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Keep boxes best first, and let each take score from those left that it overlaps.

    The box with the greatest current score (of equal ones that of the lower index) is kept with
    that score, until none is left. The scores of the boxes left that have its label and image
    become, with their IoU with it (Bodla et al., "Soft-NMS", ICCV 2017, eq. 2 and 3):

        linear:    score * (1 - iou)               where iou > iou_threshold
        gaussian:  score * exp(-iou**2 / sigma)    where iou > 0

    A box whose score is below `min_score` is dropped, also where it starts there.

    Exact: the same bits in the same order on every device. The IoU is that of `nms`; the factor is
    computed in float64 and rounded to the type of the scores. Boxes without area overlap nothing.

    Args:
        boxes: [K, 4] x1 y1 x2 y2; float32, float64, or float16 and bfloat16, computed in float32.
        scores: [K], of a float type of its own.
        iou_threshold: linear only; in [0, 1].
        sigma: gaussian only; above 0. Smaller ones take more.
        min_score: at least 0; compared in the type of the scores.
        method: "linear" or "gaussian".
        labels: [K] int64; boxes of different labels leave each other alone. None: all alike.
        image_ids: [K] int64, likewise.
        check: whether to look for bad values. It costs a pass, and on CUDA a synchronisation.

    Returns:
        keep [n] int64, indices of the kept boxes in the order in which they were kept, and their
        final scores [n], which fall; float32 for float16 and bfloat16 scores, which could not hold
        the decayed values apart. No gradient.

    Raises:
        RuntimeError: for a wrong shape, dtype, device or option; with `check` also for boxes that
            are not finite or have x2 < x1 or y2 < y1, and for NaN scores.
    """
    kept: tuple[Tensor, Tensor] = torch.ops.tinyops.soft_nms(
        boxes,
        scores,
        iou_threshold=iou_threshold,
        sigma=sigma,
        min_score=min_score,
        method=code("soft_nms", "method", method, METHODS),
        labels=labels,
        image_ids=image_ids,
        check=check,
    )
    return kept


def check_arguments(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    labels: Tensor | None,
    image_ids: Tensor | None,
) -> None:
    """The checks of csrc/ops/soft_nms_check.h, for fake tensors."""
    op = "soft_nms"
    check_boxes(op, "boxes", boxes)
    check_scores(op, "scores", scores, "boxes", boxes)
    check_ids(op, "labels", labels, "boxes", boxes)
    check_ids(op, "image_ids", image_ids, "boxes", boxes)
    check_fraction(op, "iou_threshold", iou_threshold)
    check(0 < sigma < math.inf, f"{op}: sigma must be finite and above 0, got {sigma:g}")
    check(
        0 <= min_score < math.inf,
        f"{op}: min_score must be finite and at least 0, got {min_score:g}",
    )
    check(method in (0, 1), f"{op}: method must be 0 (linear) or 1 (gaussian), got {method}")


def _fake(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.05,
    method: int = 0,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    check_arguments(boxes, scores, iou_threshold, sigma, min_score, method, labels, image_ids)
    n = unbacked_size(boxes.shape[0])
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return boxes.new_empty(n, dtype=torch.int64), scores.new_empty(n, dtype=dtype)


def register(namespace: str) -> None:
    """Give the operator of `namespace` its fake, and no gradient."""
    register_box_operator(f"{namespace}::soft_nms", _fake)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Run the CPU kernel on a copy: the operator is a sequence of decisions, no work for Triton."""
    implement_by_copy(f"{namespace}::soft_nms", key)


register("tinyops")
