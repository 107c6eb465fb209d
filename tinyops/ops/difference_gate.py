"""Difference-guided feature enhancement (SR-TOD, eq. 4 and 6): features where images differ."""

from typing import Any

import torch
from torch import Tensor

from tinyops.ops._boxes import code
from tinyops.ops._glue import (
    check,
    dtype_text,
    layout_of,
    once_differentiable,
    operator,
    register_autocast,
    shape_text,
)
from tinyops.ops._maps import check_map, check_map_like

RESIZES = ("nearest", "area", "max")  # in the order of the schema's codes
ESTIMATORS = ("identity", "none")


def difference_gate(
    features: Tensor,
    channel_weight: Tensor,
    difference: Tensor,
    threshold: Tensor,
    *,
    resize: str = "nearest",
    ste: str = "identity",
) -> Tensor:
    """Scale features by a weight per channel, and double them where the difference is large.

        out = features * channel_weight * (1 + mask)
        mask = resize(0.5 * (sign(difference - threshold) + 1))

    This is SR-TOD's module for difference-guided feature enhancement (eq. 4 and 6). A pixel of the
    map is 1 above the threshold, 0 below it and 0.5 on a tie. `resize` makes one value of the block
    of H/h x W/w pixels of a cell: "nearest" takes its upper left pixel (as SR-TOD's released code),
    "area" the mean, "max" the largest.

    `sign` has no useful derivative. With ste="identity" gradients pass straight through: d sign(x)
    is 1 for |x| <= 1 and 0 elsewhere. With g_m = sum_c grad * features * channel_weight at a cell,
    `difference` gets 0.5 * g_m at the pixels that `resize` reads (for "area" each its share, for
    "max" the first of the equal maxima), `threshold` minus the sum of these. With ste="none", as in
    the released code, the gradients of both are zero: the threshold does not learn.

    Args:
        features: [N, C, h, w]; float32, float64, float16 or bfloat16.
        channel_weight: [N, C, 1, 1], usually in 0..1.
        difference: [N, 1, H, W], usually in 0..1 (`difference_map`), H and W integer multiples of h
            and w. Of the dtype of the features, or float32 or float64 where the mask is to be
            decided in more digits.
        threshold: no dimensions, in the units and dtype of `difference`, such as 4 / 255.
        resize: "nearest", "area" or "max".
        ste: "identity" or "none", the straight-through estimator.

    Returns:
        [N, C, h, w], channels_last if `features` are, otherwise contiguous. Computed in float32
        (float64 for float64) and rounded once. Under autocast features and weights take its dtype,
        difference and threshold become float32. Differentiable once in every tensor, in reverse
        mode.

    Raises:
        RuntimeError: for a wrong rank, size, dtype or device, or an unknown word.
    """
    return torch.ops.tinyops.difference_gate(
        features,
        channel_weight,
        difference,
        threshold,
        resize=code(_OP, "resize", resize, RESIZES),
        ste=code(_OP, "ste", ste, ESTIMATORS),
    )


def difference_gate_reference(
    features: Tensor,
    channel_weight: Tensor,
    difference: Tensor,
    threshold: Tensor,
    *,
    resize: str = "nearest",
    ste: str = "identity",
) -> Tensor:
    """`difference_gate` in plain torch: the definition that every kernel is tested against."""
    distance = difference - threshold
    mask = 0.5 * (distance.sign() + 1)
    if ste == "identity":
        near = torch.where(distance.abs() <= 1, distance, 0)
        mask = mask.detach() + 0.5 * (near - near.detach())
    (n, _, h, w), (height, width) = features.shape, difference.shape[-2:]
    rows, columns = height // h if h else 1, width // w if w else 1
    blocks = mask.reshape(n, h, rows, w, columns).transpose(2, 3).flatten(3)
    if resize == "nearest":
        resized = blocks[..., 0]
    elif resize == "area":
        resized = blocks.mean(-1)
    else:
        first = blocks.detach().eq(blocks.detach().amax(-1, keepdim=True)).int().argmax(-1)
        resized = blocks.gather(-1, first[..., None])[..., 0]
    return features * channel_weight * (1 + resized[:, None])


_OP = "difference_gate"


def check_arguments(
    features: Tensor,
    channel_weight: Tensor,
    difference: Tensor,
    threshold: Tensor,
    *,
    resize: int = 0,
    ste: int = 0,
) -> None:
    """The checks of csrc/ops/difference_gate_check.h, for fake tensors and Triton."""
    check_map(_OP, "features", features)
    n, c = features.shape[:2]
    check_map_like(_OP, "channel_weight", channel_weight, "features", features, (n, c, 1, 1))
    _check_difference(difference, features)
    _check_threshold(threshold, difference, features)
    check(0 <= resize <= 2, f"{_OP}: resize must be 0, 1 or 2, got {resize}")
    check(0 <= ste <= 1, f"{_OP}: ste must be 0 or 1, got {ste}")


def _check_difference(difference: Tensor, features: Tensor) -> None:
    check(
        difference.dim() == 4,
        f"{_OP}: difference must have 4 dimensions [N, C, H, W], got "
        f"{shape_text(difference.shape)}",
    )
    check(
        difference.device == features.device,
        f"{_OP}: difference must be on {features.device} like features, got {difference.device}",
    )
    check(
        difference.dtype in (features.dtype, torch.float32, torch.float64),
        f"{_OP}: difference must be float32, float64 or {dtype_text(features.dtype)} like "
        f"features, got {dtype_text(difference.dtype)}",
    )
    (n, _, h, w), (height, width) = features.shape, difference.shape[-2:]
    check(
        difference.shape[0] == n and difference.shape[1] == 1,
        f"{_OP}: difference must be [{n}, 1, H, W], got {shape_text(difference.shape)}",
    )
    for size in (h, w, height, width):
        check(size < 2**31, f"{_OP}: height and width must be below 2^31, got {size}")
    for cells, pixels in ((h, height), (w, width)):
        check(
            pixels == 0 if cells == 0 else pixels > 0 and pixels % cells == 0,
            f"{_OP}: height and width of difference must be multiples of {h}x{w}, got "
            f"{height}x{width}",
        )


def _check_threshold(threshold: Tensor, difference: Tensor, features: Tensor) -> None:
    check(
        threshold.dim() == 0,
        f"{_OP}: threshold must have no dimensions, got {shape_text(threshold.shape)}",
    )
    check(
        threshold.device == features.device,
        f"{_OP}: threshold must be on {features.device} like features, got {threshold.device}",
    )
    check(
        threshold.dtype == difference.dtype,
        f"{_OP}: threshold must be {dtype_text(difference.dtype)} like difference, got "
        f"{dtype_text(threshold.dtype)}",
    )


def check_backward_arguments(
    grad: Tensor,
    features: Tensor,
    channel_weight: Tensor,
    difference: Tensor,
    threshold: Tensor,
    resize: int,
    *needs: bool,
) -> None:
    """`check_arguments` for the tensors of the backward operator."""
    check_arguments(features, channel_weight, difference, threshold, resize=resize)
    check_map_like(_OP, "grad", grad, "features", features, tuple(features.shape))


def _fake(features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    check_arguments(features, *args, **kwargs)
    return torch.empty_like(features, memory_format=layout_of(features))


def _backward_fake(
    grad: Tensor,
    features: Tensor,
    channel_weight: Tensor,
    difference: Tensor,
    threshold: Tensor,
    resize: int,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_backward_arguments(grad, features, channel_weight, difference, threshold, resize, *needs)

    def gradient(x: Tensor, needed: bool, layout: torch.memory_format) -> Tensor:
        return torch.empty_like(x, memory_format=layout) if needed else x.new_empty(0)

    plane = torch.contiguous_format
    layouts = layout_of(features), plane, plane, plane
    tensors = features, channel_weight, difference, threshold
    d_features, d_channel_weight, d_difference, d_threshold = map(gradient, tensors, needs, layouts)
    return d_features, d_channel_weight, d_difference, d_threshold


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, gradients and autocast rules."""
    name = f"{namespace}::difference_gate"
    backward_operator = operator(f"{namespace}::_difference_gate_backward")

    def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.resize = keyword_only_inputs["resize"]
        ctx.straight_through = ESTIMATORS[keyword_only_inputs["ste"]] == "identity"

    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad
        needs = [bool(x) for x in wanted]
        if not ctx.straight_through:
            needs[2:] = False, False
        results = list(backward_operator(grad, *tensors, ctx.resize, *needs))
        for k in range(4):
            if not wanted[k]:
                results[k] = None
            elif not needs[k]:  # the derivative of sign as torch has it: zeros, not None
                results[k] = torch.zeros_like(tensors[k])
        return tuple(results)

    torch.library.register_fake(name, _fake)
    torch.library.register_fake(f"{namespace}::_difference_gate_backward", _backward_fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    register_autocast(name, wide=("difference", "threshold"))


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the Triton kernels the implementation of the operators of `namespace` for `key`."""
    from tinyops._triton import difference_gate as kernels

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        check_arguments(*args, **kwargs)
        return kernels.difference_gate(*args, **kwargs)

    def backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_backward_arguments(*args)
        return kernels._difference_gate_backward(*args)

    torch.library.impl(f"{namespace}::difference_gate", key)(forward)
    torch.library.impl(f"{namespace}::_difference_gate_backward", key)(backward)


register("tinyops")
