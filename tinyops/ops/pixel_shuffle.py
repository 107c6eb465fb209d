"""Sub-pixel upsampling fused with what follows it (EFPN, eq. 3 and 4): `cat` or an addition."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyops.ops._boxes import code
from tinyops.ops._glue import (
    check,
    layout_of,
    once_differentiable,
    operator,
    register_autocast,
    shape_text,
)
from tinyops.ops._maps import check_map, check_map_like

ORDERS = ("crd", "dcr")  # in the order of the schema's codes


def pixel_shuffle_concat(
    content: Tensor,
    reference: Tensor,
    *,
    upscale: int = 2,
    negative_slope: float = 1.0,
    order: str = "crd",
) -> Tensor:
    """Concatenate the shuffled `content` with `reference`.

        out = cat([leaky_relu(pixel_shuffle(content)), reference], 1)

    This is the input of the texture extractor of EFPN's feature texture transfer (eq. 3 and 4).
    `pixel_shuffle` moves channels to sub-pixels: with r = upscale and k = r * (y % r) + x % r,

        pixel_shuffle(content)[n, c, y, x] = content[n, c * r * r + k, y // r, x // r]     "crd"
        pixel_shuffle(content)[n, c, y, x] = content[n, k * C + c, y // r, x // r]         "dcr"

    "crd" is the order of `torch.nn.PixelShuffle` and of EFPN's released code, "dcr" the one that
    EFPN prints in eq. 4. ONNX calls them by these names (DepthToSpace). They describe the same
    functions of a convolution before them, but its weights are not interchangeable.

    Args:
        content: [N, C * r * r, H, W]; float32, float64, float16 or bfloat16.
        reference: [N, R, r * H, r * W].
        upscale: r, 2 to 4.
        negative_slope: of the leaky ReLU, `x if x > 0 else negative_slope * x`; any finite number.
            1: no activation, and nothing is kept for the backward. 0: ReLU.
        order: "crd" or "dcr".

    Returns:
        [N, C + R, r * H, r * W], channels_last if `content` is, otherwise contiguous. Computed in
        float32 (float64 for float64) and rounded once. Differentiable once in both tensors, in
        reverse mode (no forward-mode AD, no torch.func.grad); the gradient of `reference` is a
        view of that of the output, as of torch.cat.

    Raises:
        RuntimeError: for a wrong rank, size, dtype, device or option.
    """
    return torch.ops.tinyops.pixel_shuffle_concat(
        content,
        reference,
        upscale=upscale,
        negative_slope=negative_slope,
        order=code("pixel_shuffle_concat", "order", order, ORDERS),
    )


def pixel_shuffle_add(
    content: Tensor,
    residual: Tensor,
    *,
    upscale: int = 2,
    negative_slope: float = 1.0,
    order: str = "crd",
) -> Tensor:
    """Add the shuffled `content` to `residual`.

        out = leaky_relu(pixel_shuffle(content)) + residual

    This is the sum that ends EFPN's feature texture transfer (eq. 3). `pixel_shuffle`, its order
    and the options are those of `pixel_shuffle_concat`.

    Args:
        content: [N, C * r * r, H, W]; float32, float64, float16 or bfloat16.
        residual: [N, C, r * H, r * W].
        upscale: r, 2 to 4.
        negative_slope: of the leaky ReLU; any finite number. 1: no activation, and nothing is kept
            for the backward. 0: ReLU.
        order: "crd" (as `torch.nn.PixelShuffle`) or "dcr" (as EFPN eq. 4 prints it).

    Returns:
        [N, C, r * H, r * W], channels_last if `content` is, otherwise contiguous. Computed in
        float32 (float64 for float64) and rounded once. Differentiable once in both tensors, in
        reverse mode; the gradient of `residual` is that of the output itself.

    Raises:
        RuntimeError: for a wrong rank, size, dtype, device or option.
    """
    return torch.ops.tinyops.pixel_shuffle_add(
        content,
        residual,
        upscale=upscale,
        negative_slope=negative_slope,
        order=code("pixel_shuffle_add", "order", order, ORDERS),
    )


def pixel_shuffle_concat_reference(
    content: Tensor,
    reference: Tensor,
    *,
    upscale: int = 2,
    negative_slope: float = 1.0,
    order: str = "crd",
) -> Tensor:
    """`pixel_shuffle_concat` in plain torch."""
    return torch.cat([_shuffled(content, upscale, negative_slope, order), reference], 1)


def pixel_shuffle_add_reference(
    content: Tensor,
    residual: Tensor,
    *,
    upscale: int = 2,
    negative_slope: float = 1.0,
    order: str = "crd",
) -> Tensor:
    """`pixel_shuffle_add` in plain torch."""
    return _shuffled(content, upscale, negative_slope, order) + residual


def _shuffled(content: Tensor, r: int, negative_slope: float, order: str) -> Tensor:
    n, channels, h, w = content.shape
    c = channels // (r * r)
    if order == "crd":
        parts = content.reshape(n, c, r, r, h, w).permute(0, 1, 4, 2, 5, 3)  # n c h i w j
    else:
        parts = content.reshape(n, r, r, c, h, w).permute(0, 3, 4, 1, 5, 2)
    return F.leaky_relu(parts.reshape(n, c, h * r, w * r), negative_slope)


def check_arguments(
    op: str,
    content: Tensor,
    other: Tensor,
    *,
    upscale: int = 2,
    negative_slope: float = 1.0,
    order: int = 0,
) -> None:
    """The checks of csrc/ops/pixel_shuffle_check.h, for fake tensors and Triton."""
    name = "residual" if op == "pixel_shuffle_add" else "reference"
    check_map(op, "content", content)
    _check_options(op, upscale, negative_slope, order)
    n, channels, h, w = content.shape
    parts = upscale * upscale
    check(
        channels % parts == 0,
        f"{op}: content must have a multiple of {parts} channels for upscale={upscale}, got "
        f"{shape_text(content.shape)}",
    )
    for size in (h, w):
        check(
            size <= (2**31 - 1) // upscale,
            f"{op}: height and width of content must be below 2^31 / upscale, got {size}",
        )
    height, width = upscale * h, upscale * w
    if op == "pixel_shuffle_add":
        wanted = (n, channels // parts, height, width)
        return check_map_like(op, name, other, "content", content, wanted)
    check_map_like(op, name, other, "content", content)
    check(
        other.shape[0] == n and tuple(other.shape[2:]) == (height, width),
        f"{op}: {name} must be [{n}, R, {height}, {width}], got {shape_text(other.shape)}",
    )


def check_backward_arguments(
    grad: Tensor,
    content: Tensor | None,
    channels: int,
    upscale: int,
    negative_slope: float,
    order: int,
) -> None:
    """`check_arguments` for the tensors of the backward operator."""
    op = "pixel_shuffle"
    check_map(op, "grad", grad)
    _check_options(op, upscale, negative_slope, order)
    n, outer, height, width = grad.shape
    check(0 <= channels <= outer, f"{op}: channels must be 0 to {outer}, got {channels}")
    check(
        height % upscale == 0 and width % upscale == 0,
        f"{op}: height and width of grad must be multiples of {upscale}, got "
        f"{shape_text(grad.shape)}",
    )
    check(
        (content is not None) == (negative_slope != 1),
        f"{op}: the backward needs content with negative_slope other than 1 and only then",
    )
    if content is not None:
        size = (n, channels * upscale**2, height // upscale, width // upscale)
        check_map_like(op, "content", content, "grad", grad, size)


def _check_options(op: str, upscale: int, negative_slope: float, order: int) -> None:
    check(2 <= upscale <= 4, f"{op}: upscale must be 2, 3 or 4, got {upscale}")
    check(
        math.isfinite(negative_slope) and abs(negative_slope) <= torch.finfo(torch.float32).max,
        f"{op}: negative_slope must be finite in float32, got {negative_slope:g}",
    )
    check(order in (0, 1), f"{op}: order must be 0 (crd) or 1 (dcr), got {order}")


def _fake(op: str) -> Callable[..., Tensor]:
    def fake(
        content: Tensor,
        other: Tensor,
        *,
        upscale: int = 2,
        negative_slope: float = 1.0,
        order: int = 0,
    ) -> Tensor:
        check_arguments(
            op, content, other, upscale=upscale, negative_slope=negative_slope, order=order
        )
        n, c, h, w = content.shape
        copied = 0 if op == "pixel_shuffle_add" else other.shape[1]
        size = (n, c // upscale**2 + copied, upscale * h, upscale * w)
        return _empty(content, size, layout_of(content))

    return fake


def _backward_fake(
    grad: Tensor,
    content: Tensor | None,
    channels: int,
    upscale: int,
    negative_slope: float,
    order: int,
) -> Tensor:
    check_backward_arguments(grad, content, channels, upscale, negative_slope, order)
    n, _, height, width = grad.shape
    size = (n, channels * upscale**2, height // upscale, width // upscale)
    return _empty(grad, size, _backward_layout(grad, content))


def _empty(like: Tensor, size: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def _backward_layout(grad: Tensor, content: Tensor | None) -> torch.memory_format:
    """The layout that the backward works in: of a dense gradient, otherwise of `content`."""
    layout = layout_of(grad)
    if content is None or grad.is_contiguous(memory_format=layout):
        return layout
    return layout_of(content)


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, gradients and autocast rules."""
    backward_operator = operator(f"{namespace}::_pixel_shuffle_backward")

    def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        content, _other = inputs
        ctx.options = tuple(
            keyword_only_inputs[name] for name in ("upscale", "negative_slope", "order")
        )
        upscale, negative_slope, _order = ctx.options
        ctx.channels = content.shape[1] // upscale**2
        # Of content only the signs are needed, and only with an activation.
        wanted = negative_slope != 1 and ctx.needs_input_grad[0]
        ctx.save_for_backward(content if wanted else None)

    def content_gradient(ctx: Any, grad: Tensor) -> Tensor | None:
        if not ctx.needs_input_grad[0]:
            return None
        (content,) = ctx.saved_tensors
        return backward_operator(grad, content, ctx.channels, *ctx.options)

    @once_differentiable
    def concat_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_content = content_gradient(ctx, grad)
        if not ctx.needs_input_grad[1]:
            return d_content, None
        return d_content, grad.narrow(1, ctx.channels, grad.shape[1] - ctx.channels)

    @once_differentiable
    def add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return content_gradient(ctx, grad), grad if ctx.needs_input_grad[1] else None

    for stem, backward in (
        ("pixel_shuffle_concat", concat_backward),
        ("pixel_shuffle_add", add_backward),
    ):
        name = f"{namespace}::{stem}"
        torch.library.register_fake(name, _fake(stem))
        torch.library.register_autograd(name, backward, setup_context=setup_context)
        register_autocast(name)
    torch.library.register_fake(f"{namespace}::_pixel_shuffle_backward", _backward_fake)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the Triton kernels the implementation of the operators of `namespace` for `key`."""
    from tinyops._triton import pixel_shuffle as kernels

    def concat(content: Tensor, reference: Tensor, **options: Any) -> Tensor:
        check_arguments("pixel_shuffle_concat", content, reference, **options)
        return kernels.pixel_shuffle_concat(content, reference, **options)

    def add(content: Tensor, residual: Tensor, **options: Any) -> Tensor:
        check_arguments("pixel_shuffle_add", content, residual, **options)
        return kernels.pixel_shuffle_add(content, residual, **options)

    def backward(*args: Any) -> Tensor:
        check_backward_arguments(*args)
        return kernels._pixel_shuffle_backward(*args)

    torch.library.impl(f"{namespace}::pixel_shuffle_concat", key)(concat)
    torch.library.impl(f"{namespace}::pixel_shuffle_add", key)(add)
    torch.library.impl(f"{namespace}::_pixel_shuffle_backward", key)(backward)


register("tinyops")
