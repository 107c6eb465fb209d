"""The best target of every box: the heart of assigning boxes to objects."""

import torch
from torch import Tensor

from tinyops.ops._boxes import (
    check_boxes,
    check_ids,
    check_per_box,
    code,
    implement_by_copy,
    register_box_operator,
)
from tinyops.ops._glue import check, dtype_text

# In the order of their codes in the schemas, csrc/ops/max_overlap.h.
MODES = ("iou", "iof_target", "iof_box", "ios", "giou", "nwd", "rfd_kl", "rfd_w")


def max_overlap(
    boxes: Tensor,
    targets: Tensor,
    *,
    mode: str = "iou",
    target_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    target_image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """The largest overlap of every box with any target, and which target that is.

        value[k] = max over m of overlap(boxes[k], targets[m]),   index[k] = the first m that has it

    without the [K, M] matrix of overlaps: memory is O(K + M), and on a CPU, in the first four
    modes, the time is that of the pairs that are near each other.

    The modes, where areas of a box without width or height are 0, and 0/0 is 0:

    - "iou": intersection / union, in the bits of torchvision.ops.box_iou.
    - "iof_target", "iof_box", "ios": intersection / area of the target, of the box, and of the
      smaller one.
    - "giou": IoU - (hull - union) / hull, in the bits of torchvision's (Rezatofighi et al. 2019).
    - "nwd": exp(-sqrt(W) / 12.8), the normalised Wasserstein distance (Wang et al. 2021, eq. 8)
      with W = dx^2 + dy^2 + (dw^2 + dh^2) / 4 of centres and sizes; 12.8 pixels is the mean size of
      the objects of AI-TOD. Pairs are ordered by W, also where the value is rounded to 0.
    - "rfd_kl": 1 / (1 + KL), KL = (wp^2/wg^2 + hp^2/hg^2 + 4 dx^2/wg^2 + 4 dy^2/hg^2
      + ln(wg^2/wp^2) + ln(hg^2/hp^2) - 2) / 2 of a box p and a target g: RFLA's receptive field
      distance (Xu et al. 2022, eq. 6-7). 0 for boxes and targets without width or height.
    - "rfd_w": 1 / (1 + W), RFLA's other distance.

    Args:
        boxes: [K, 4] x1 y1 x2 y2; float32, float64, float16 or bfloat16.
        targets: [M, 4], of the dtype of `boxes`.
        mode: what an overlap is, one of the words above.
        target_mask: [M] bool; a target whose mask is False is ignored. Default: none is.
        image_ids: [K] int64, the image of every box; only targets of that image count.
        target_image_ids: [M] int64. Image ids of both or of none.
        check: look for bad coordinates; on a GPU this waits for it once.

    Returns:
        value [K], float64 for float64 and float32 for all else, and index [K] int64. Equal overlaps
        go to the lower index, so that a box which overlaps nothing has the value 0 and the first
        target of its image. Without any target: value 0 ("giou": -inf) and index -1. The same bits
        on every device. There is no gradient.

    Raises:
        RuntimeError: for a wrong shape, dtype or device, an unknown mode, image ids of one side
            alone, and, unless `check` is False, for coordinates that are not finite or have
            x2 < x1 or y2 < y1.
    """
    return torch.ops.tinyops.max_overlap(
        boxes,
        targets,
        mode=code("max_overlap", "mode", mode, MODES),
        target_mask=target_mask,
        image_ids=image_ids,
        target_image_ids=target_image_ids,
        check=check,
    )


def check_arguments(
    op: str,
    boxes: Tensor,
    targets: Tensor,
    mode: int,
    target_mask: Tensor | None,
    image_ids: Tensor | None,
    target_image_ids: Tensor | None,
) -> None:
    """The checks of csrc/ops/max_overlap_check.h, for fake tensors."""
    check_boxes(op, "boxes", boxes)
    check_boxes(op, "targets", targets)
    check(
        targets.device == boxes.device,
        f"{op}: targets must be on {boxes.device} like boxes, got {targets.device}",
    )
    check(
        targets.dtype == boxes.dtype,
        f"{op}: targets must be {dtype_text(boxes.dtype)} like boxes, "
        f"got {dtype_text(targets.dtype)}",
    )
    check(0 <= mode < len(MODES), f"{op}: mode must be in [0, {len(MODES)}), got {mode}")
    if target_mask is not None:
        check_per_box(op, "target_mask", target_mask, "targets", targets)
        check(
            target_mask.dtype == torch.bool,
            f"{op}: target_mask must be bool, got {dtype_text(target_mask.dtype)}",
        )
    alone = "image_ids" if image_ids is not None else "target_image_ids"
    check(
        (image_ids is None) == (target_image_ids is None),
        f"{op}: image_ids and target_image_ids must come together, got {alone} alone",
    )
    check_ids(op, "image_ids", image_ids, "boxes", boxes)
    check_ids(op, "target_image_ids", target_image_ids, "targets", targets)


def value_dtype(boxes: Tensor) -> torch.dtype:
    """That of the computation."""
    return torch.float64 if boxes.dtype == torch.float64 else torch.float32


def _fake(
    boxes: Tensor,
    targets: Tensor,
    *,
    mode: int = 0,
    target_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    target_image_ids: Tensor | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    check_arguments("max_overlap", boxes, targets, mode, target_mask, image_ids, target_image_ids)
    value = boxes.new_empty((boxes.shape[0],), dtype=value_dtype(boxes))
    return value, torch.empty_like(value, dtype=torch.int64)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Implement the operator for `key`, where no CUDA kernels were built."""
    implement_by_copy(f"{namespace}::max_overlap", key)


def register(namespace: str) -> None:
    """Register the fake kernel, and that there is no gradient."""
    register_box_operator(f"{namespace}::max_overlap", _fake)


register("tinyops")
