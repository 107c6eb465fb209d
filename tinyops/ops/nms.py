"""Non-maximum suppression: exact, greedy, without a K x K structure."""

from typing import overload

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

_METRICS = ("iou", "ios")  # in the order of the schema's codes


@overload
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    metric: str = "iou",
    offset: int = 0,
    max_outputs: None = None,
    check: bool = True,
) -> Tensor: ...


@overload
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    metric: str = "iou",
    offset: int = 0,
    max_outputs: int,
    check: bool = True,
) -> tuple[Tensor, Tensor]: ...


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    metric: str = "iou",
    offset: int = 0,
    max_outputs: int | None = None,
    check: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Keep the best box of every group of overlapping ones.

    From the highest score to the lowest (equal scores: lower index first), a box is kept unless
    a kept box of the same label and image overlaps it by more than the threshold:

        width(b)   = (b.x2 - b.x1) + offset            height likewise
        inter(a,b) = max(0, (min(a.x2, b.x2) - max(a.x1, b.x1)) + offset) * (height likewise)
        iou(a,b)   = inter / ((area(a) + area(b)) - inter)        a: the kept one
        ios(a,b)   = inter / min(area(a), area(b))

    Every step is rounded as written, in float64 for float64 boxes and in float32 for all others,
    and the quotient is compared with the float64 threshold. So the list and its order are, bit for
    bit, those of `torchvision.ops.nms` on a CPU for the same float32 or float64 boxes, on every
    device; with `labels`, those of one such call per label, merged by score. Labels are compared:
    boxes are not moved apart by label, which changes results where coordinates are large.

    Time grows linearly with K (the sort is a radix sort) for boxes of bounded overlap, whatever
    their sizes, aspect ratios and places; memory is O(K) always. Worst case: boxes that are nearly
    all kept although they lie in one place (a threshold near 1). On a CPU that is K^2 / 16
    comparisons of eight boxes at once, on a GPU K^2 / 2 of two, never more than a plain loop makes.
    On a CPU, threads are used from 200,000 boxes on, and never change the result. On a GPU the host
    waits once, to learn how many boxes were kept, and once more for the value check; with
    `max_outputs` and `check=False` it never waits, so that the call can be captured in a CUDA
    graph. On a GPU without CUDA kernels (tinyops built without nvcc) the CPU kernel works on a
    copy.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 with x1 <= x2 and y1 <= y2, finite; float32, float64, float16 or
            bfloat16. A box without area overlaps nothing (unless offset=1), and is kept.
        scores: [K] of any of these types, not NaN.
        iou_threshold: 0 to 1; of whichever metric is chosen. An overlap equal to it is allowed.
        labels: [K] int64, any values: only boxes of equal labels are compared.
        image_ids: [K] int64, any values: only boxes of equal ids are compared. The boxes of a
            batch may be in any order.
        metric: "iou", or "ios": intersection over the smaller area, so that a box inside another
            one goes.
        offset: 1: the legacy convention in which x2 and y2 belong to the box, as in the published
            results on TinyPerson; 0: widths are x2 - x1.
        max_outputs: return a result of this fixed size instead, the best `max_outputs` kept boxes.
        check: False: do not look at values. Boxes or scores that break the rules above then give
            an undefined selection.

    Returns:
        Indices of the kept boxes, best first, [kept] int64. With `max_outputs`: a pair of these
        indices, [max_outputs] int64 filled up with -1, and how many there are, a 0-dim int64.
        No gradient.

    Raises:
        RuntimeError: for a wrong rank, size, dtype, device, option or value; it names the first
            bad box or score.
    """
    plain = labels is image_ids is max_outputs is None and metric == "iou" and offset == 0
    if plain and check:  # parsing keywords takes a tenth of a call with a few boxes
        return torch.ops.tinyops.nms(boxes, scores, iou_threshold)
    metric_code = code("nms", "metric", metric, _METRICS)
    if max_outputs is None:
        return torch.ops.tinyops.nms(
            boxes,
            scores,
            iou_threshold,
            labels=labels,
            image_ids=image_ids,
            metric=metric_code,
            offset=offset,
            check=check,
        )
    return torch.ops.tinyops.nms_padded(
        boxes,
        scores,
        iou_threshold,
        max_outputs,
        labels=labels,
        image_ids=image_ids,
        metric=metric_code,
        offset=offset,
        check=check,
    )


def nms_reference(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    metric: str = "iou",
    offset: int = 0,
) -> Tensor:
    """`nms` in plain torch, in time O(K * kept)."""
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    ids = [x for x in (labels, image_ids) if x is not None]
    rest = scores.argsort(descending=True, stable=True)
    keep = [rest[:0]]
    while len(rest) > 0:
        best, rest = rest[:1], rest[1:]
        keep.append(best)
        upper = boxes[best, 2:].minimum(boxes[rest, 2:])
        lower = boxes[best, :2].maximum(boxes[rest, :2])
        inter = (upper - lower + offset).clamp(min=0).prod(1)
        a, b = areas[best], areas[rest]
        overlap = inter / (a + b - inter if metric == "iou" else a.minimum(b))
        goes = overlap.double() > iou_threshold
        for x in ids:
            goes &= x[best] == x[rest]
        rest = rest[~goes]
    return torch.cat(keep)


def _check_arguments(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None,
    image_ids: Tensor | None,
    metric: int,
    offset: int,
) -> None:
    """The checks of csrc/ops/nms_check.h, for fake tensors."""
    check_boxes("nms", "boxes", boxes)
    check_scores("nms", "scores", scores, "boxes", boxes)
    check_fraction("nms", "iou_threshold", iou_threshold)
    check_ids("nms", "labels", labels, "boxes", boxes)
    check_ids("nms", "image_ids", image_ids, "boxes", boxes)
    check(metric in (0, 1), f"nms: metric must be 0 (iou) or 1 (ios), got {metric}")
    check(offset in (0, 1), f"nms: offset must be 0 or 1, got {offset}")


def _fake(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    metric: int = 0,
    offset: int = 0,
    check: bool = True,
) -> Tensor:
    _check_arguments(boxes, scores, iou_threshold, labels, image_ids, metric, offset)
    return boxes.new_empty(unbacked_size(boxes.shape[0]), dtype=torch.int64)


def _padded_fake(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_outputs: int,
    *,
    labels: Tensor | None = None,
    image_ids: Tensor | None = None,
    metric: int = 0,
    offset: int = 0,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    _check_arguments(boxes, scores, iou_threshold, labels, image_ids, metric, offset)
    _check_max_outputs(max_outputs)
    return (
        boxes.new_empty(max_outputs, dtype=torch.int64),
        boxes.new_empty((), dtype=torch.int64),
    )


def _check_max_outputs(max_outputs: int) -> None:
    check(max_outputs >= 0, f"nms: max_outputs must be at least 0, got {max_outputs}")


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes."""
    register_box_operator(f"{namespace}::nms", _fake)
    register_box_operator(f"{namespace}::nms_padded", _padded_fake)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the CPU kernels, on copies, the implementation of `namespace` for `key`."""
    implement_by_copy(f"{namespace}::nms", key)
    implement_by_copy(f"{namespace}::nms_padded", key)


register("tinyops")
