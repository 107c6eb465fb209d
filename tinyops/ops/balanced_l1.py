"""Foreground-background-balanced L1 (EFPN, eq. 5 to 7): distils a finer level of a pyramid."""

import math
from typing import Any

import torch
from torch import Tensor

from tinyops.ops._boxes import check_boxes, check_ids
from tinyops.ops._glue import (
    check,
    dtype_text,
    layout_of,
    once_differentiable,
    operator,
    register_autocast_of_pair,
    shape_text,
)
from tinyops.ops._maps import check_map, check_map_like, check_plane, check_valid
from tinyops.ops.avg_max_pool import valid_cells


def balanced_l1(
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None = None,
    *,
    scale: float,
    weight: float = 1.0,
) -> Tensor:
    """Mean |prediction - target| of all cells plus `weight` times that of the cells under boxes.

        total / (cells * C) + weight * positive / (positive cells * C)

    EFPN's eq. 5, with the positive cells of eq. 7: the union of the boxes, each snapped outwards to
    the grid. The paper's sum of both terms hides that objects are a small part of the cells. A term
    that has no cells is 0.

    Args:
        prediction: [N, C, H, W]; float32, float64, float16 or bfloat16.
        target: the same size and dtype.
        boxes: [M, 4] x1 y1 x2 y2 in pixels of the (padded) image; any float dtype.
        image_ids: [M] int64, the image of each box. A box of an image that does not exist (-1, say)
            marks nothing, nor does one with a NaN, x2 < x1 or y2 < y1.
        valid: [N, 2] int64, height and width of each image without padding, in cells, cut to 0..H
            and 0..W. Other cells count for nothing, positive or not.
        scale: cells per pixel; 1/4 for a level of stride 4.
        weight: of the positive cells (lambda of eq. 5).

    Returns:
        A number without dimensions; float32 (float64 for float64). Differentiable once in
        prediction and target, in reverse mode; where they are equal the gradient is 0.

    Raises:
        RuntimeError: for a wrong rank, size, dtype or device, or a scale that is not above 0.
    """
    total, positive, cells = balanced_l1_sums(
        prediction, target, boxes, image_ids, valid, scale=scale
    )
    images, channels, height, width = prediction.shape
    elements: Any = max(images * channels * height * width, 1)
    if valid is not None:
        extents = valid[:, 0].clamp(0, height) * valid[:, 1].clamp(0, width)
        elements = (extents.sum() * channels).clamp(min=1)
    return total / elements + weight * positive / (cells * channels).clamp(min=1)


def balanced_l1_sums(
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None = None,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of `balanced_l1`, to be added up over processes before they are divided.

    Args:
        prediction: these and all others are those of `balanced_l1`.
        target: see there.
        boxes: see there.
        image_ids: see there.
        valid: see there.
        scale: see there.

    Returns:
        total, the sum of |prediction - target| over cells and channels; positive, the same over the
        positive cells; and cells, how many those are (int64). All without dimensions. The sums are
        float32 (float64 for float64), added up in parts and joined in float64, in an order that
        depends on nothing but the shape. Differentiable once in prediction and target.

    Raises:
        RuntimeError: as `balanced_l1`.
    """
    return torch.ops.tinyops.balanced_l1_sums(
        prediction, target, boxes, image_ids, valid, scale=scale
    )


def balanced_l1_sums_reference(
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None = None,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`balanced_l1_sums` in plain torch: the definition that every kernel is tested against."""
    inside = valid_cells(prediction, valid)
    under = torch.zeros_like(inside)
    for (x1, y1, x2, y2), n in zip(boxes.tolist(), image_ids.tolist(), strict=True):
        if 0 <= n < len(under) and x1 <= x2 and y1 <= y2:
            top, left = math.floor(y1 * scale), math.floor(x1 * scale)
            bottom, right = math.ceil(y2 * scale), math.ceil(x2 * scale)
            under[n, 0, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    under &= inside
    d, zero = (prediction - target).abs(), prediction.new_zeros(())
    return torch.where(inside, d, zero).sum(), torch.where(under, d, zero).sum(), under.sum()


_OP = "balanced_l1_sums"


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_arguments(
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None,
    scale: float,
) -> None:
    """The checks of csrc/ops/balanced_l1_check.h, for fake tensors and Triton."""
    check_map(_OP, "prediction", prediction)
    check_map_like(_OP, "target", target, "prediction", prediction, tuple(prediction.shape))
    for size in prediction.shape[2:]:
        check(size < 2**31, f"{_OP}: height and width must be below 2^31, got {size}")
    check_boxes(_OP, "boxes", boxes)
    check(
        boxes.device == prediction.device,
        f"{_OP}: boxes must be on {prediction.device} like prediction, got {boxes.device}",
    )
    check_ids(_OP, "image_ids", image_ids, "boxes", boxes)
    check_valid(_OP, valid, "prediction", prediction, prediction.shape[0])
    check(0 < scale < math.inf, f"{_OP}: scale must be finite and above 0, got {scale:g}")


def check_backward_arguments(
    d_total: Tensor,
    d_positive: Tensor,
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None,
    scale: float,
) -> None:
    """`check_arguments` for the tensors of the backward operator."""
    check_arguments(prediction, target, boxes, image_ids, valid, scale)
    dtype = sum_dtype(prediction.dtype)
    for name, d in (("d_total", d_total), ("d_positive", d_positive)):
        check(d.dim() == 0, f"{_OP}: {name} must have no dimensions, got {shape_text(d.shape)}")
        check(
            d.device == prediction.device,
            f"{_OP}: {name} must be on {prediction.device} like prediction, got {d.device}",
        )
        check(
            d.dtype == dtype,
            f"{_OP}: {name} must be {dtype_text(dtype)}, got {dtype_text(d.dtype)}",
        )


def _fake(
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None = None,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(prediction, target, boxes, image_ids, valid, scale)
    total = prediction.new_empty((), dtype=sum_dtype(prediction.dtype))
    return total, torch.empty_like(total), torch.empty_like(total, dtype=torch.int64)


def _backward_fake(
    d_total: Tensor,
    d_positive: Tensor,
    prediction: Tensor,
    target: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    valid: Tensor | None,
    scale: float,
    need_prediction: bool,
    need_target: bool,
) -> tuple[Tensor, Tensor]:
    check_backward_arguments(
        d_total, d_positive, prediction, target, boxes, image_ids, valid, scale
    )

    def one(need: bool) -> Tensor:
        if not need:
            return prediction.new_empty(0)
        return torch.empty_like(prediction, memory_format=layout_of(prediction))

    return one(need_prediction), one(need_target)


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, gradients and autocast rules."""
    name = f"{namespace}::balanced_l1_sums"
    backward_operator = operator(f"{namespace}::_balanced_l1_sums_backward")

    def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        ctx.scale = keyword_only_inputs["scale"]
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs)

    @once_differentiable
    def backward(
        ctx: Any, d_total: Tensor, d_positive: Tensor, _: Any
    ) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[:2]
        gradients = backward_operator(d_total, d_positive, *ctx.saved_tensors, ctx.scale, *need)
        d_prediction, d_target = (
            d if needed else None for d, needed in zip(gradients, need, strict=True)
        )
        return d_prediction, d_target, None, None, None

    torch.library.register_fake(name, _fake)
    torch.library.register_fake(f"{namespace}::_balanced_l1_sums_backward", _backward_fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    register_autocast_of_pair(name, "prediction", "target")


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the Triton kernels the implementation of the operators of `namespace` for `key`."""
    from tinyops._triton import balanced_l1 as kernels

    def forward(
        prediction: Tensor,
        target: Tensor,
        boxes: Tensor,
        image_ids: Tensor,
        valid: Tensor | None = None,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_arguments(prediction, target, boxes, image_ids, valid, scale)
        check_plane(_OP, prediction.shape)
        return kernels.balanced_l1_sums(prediction, target, boxes, image_ids, valid, scale)

    def backward(*args: Any) -> tuple[Tensor, Tensor]:
        check_backward_arguments(*args[:-2])
        return kernels._balanced_l1_sums_backward(*args)

    torch.library.impl(f"{namespace}::balanced_l1_sums", key)(forward)
    torch.library.impl(f"{namespace}::_balanced_l1_sums_backward", key)(backward)


register("tinyops")
