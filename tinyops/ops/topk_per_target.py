"""The best boxes of every target: low-quality matches, and RFLA's hierarchical assignment."""

import torch
from torch import Tensor

from tinyops.ops._boxes import code, implement_by_copy, register_box_operator
from tinyops.ops._glue import check as check_that
from tinyops.ops.max_overlap import MODES, check_arguments, value_dtype


def topk_per_target(
    boxes: Tensor,
    targets: Tensor,
    k: int,
    *,
    mode: str = "iou",
    all_ties: bool = False,
    min_value: float = 0.0,
    target_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    target_image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """The k boxes that overlap every target most, without the [K, M] matrix.

        value[m], index[m] = the k largest overlap(boxes[i], targets[m]) over i, largest first,

    and with `all_ties` also the target of every box that is among the best of one, ties included:

        assigned[i] = the highest m with overlap(boxes[i], targets[m]) >= value[m, k - 1],
                      >= min_value and, but for "giou", > 0;   -1 where there is none

    (where a target has fewer than k boxes, its last one takes the place of value[m, k - 1]). With
    k = 1 that is the low-quality matching of MaxIoUAssigner in mmdet, with `min_value` its
    min_pos_iou; with k = 3 and then 1 the two steps of RFLA's hierarchical label assignment (Xu et
    al. 2022, section 3.3), where later targets overwrite earlier ones.

    Args:
        boxes: [K, 4] x1 y1 x2 y2; float32, float64, float16 or bfloat16.
        targets: [M, 4], of the dtype of `boxes`.
        k: how many boxes, at least 1.
        mode: what an overlap is; the words and equations of `max_overlap`. "nwd" orders, and finds
            ties, by distance, also where the value is rounded to 0.
        all_ties: return `assigned`, too.
        min_value: the least overlap of an assigned box, rounded to the dtype of `value`. Not NaN.
        target_mask: [M] bool; a target whose mask is False gets no box. Default: all get theirs.
        image_ids: [K] int64, the image of every box; a target gets boxes of its own image only.
        target_image_ids: [M] int64. Image ids of both or of none.
        check: look for bad coordinates; on a GPU this waits for it once.

    Returns:
        value [M, k], float64 for float64 and float32 for all else, index [M, k] int64 and, with
        `all_ties`, assigned [K] int64. Equal overlaps, 0 among them, go to the lower index. Where
        a target has fewer than k boxes the rest is value 0 ("giou": -inf) and index -1. The same
        bits on every device. There is no gradient. Memory is O(K + M * k).

    Raises:
        RuntimeError: for a wrong shape, dtype or device, an unknown mode, image ids of one side
            alone, k below 1, `min_value` NaN, and, unless `check` is False, for coordinates that
            are not finite or have x2 < x1 or y2 < y1.
    """
    mode_code = code("topk_per_target", "mode", mode, MODES)
    if not all_ties:
        return torch.ops.tinyops.topk_per_target(
            boxes,
            targets,
            k,
            mode=mode_code,
            target_mask=target_mask,
            image_ids=image_ids,
            target_image_ids=target_image_ids,
            check=check,
        )
    return torch.ops.tinyops.topk_per_target_ties(
        boxes,
        targets,
        k,
        mode=mode_code,
        min_value=min_value,
        target_mask=target_mask,
        image_ids=image_ids,
        target_image_ids=target_image_ids,
        check=check,
    )


def _check_k(op: str, k: int) -> None:
    check_that(1 <= k < 2**31, f"{op}: k must be in [1, 2^31), got {k}")


def _results(boxes: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    value = boxes.new_empty((targets.shape[0], k), dtype=value_dtype(boxes))
    return value, torch.empty_like(value, dtype=torch.int64)


def _fake(
    boxes: Tensor,
    targets: Tensor,
    k: int,
    *,
    mode: int = 0,
    target_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    target_image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    op = "topk_per_target"
    check_arguments(op, boxes, targets, mode, target_mask, image_ids, target_image_ids)
    _check_k(op, k)
    return _results(boxes, targets, k)


def _fake_ties(
    boxes: Tensor,
    targets: Tensor,
    k: int,
    *,
    mode: int = 0,
    min_value: float = 0.0,
    target_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    target_image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "topk_per_target_ties"
    check_arguments(op, boxes, targets, mode, target_mask, image_ids, target_image_ids)
    _check_k(op, k)
    check_that(min_value == min_value, f"{op}: min_value must not be NaN, got {min_value}")
    assigned = boxes.new_empty((boxes.shape[0],), dtype=torch.int64)
    return *_results(boxes, targets, k), assigned


def implement_without_cuda(namespace: str, key: str) -> None:
    """Implement the operators for `key`, where no CUDA kernels were built."""
    for name in ("topk_per_target", "topk_per_target_ties"):
        implement_by_copy(f"{namespace}::{name}", key)


def register(namespace: str) -> None:
    """Register the fake kernels, and that there is no gradient."""
    register_box_operator(f"{namespace}::topk_per_target", _fake)
    register_box_operator(f"{namespace}::topk_per_target_ties", _fake_ties)


register("tinyops")
