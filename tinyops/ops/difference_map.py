"""The difference map of SR-TOD (eq. 3): where a reconstructed image differs from the original."""

from typing import Any

import torch
from torch import Tensor

from tinyops.ops._glue import (
    check,
    layout_of,
    once_differentiable,
    operator,
    register_autocast,
)
from tinyops.ops._maps import check_map, check_map_like, check_valid


def difference_map(reconstruction: Tensor, image: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over channels of the absolute difference of two images.

        out[n, 0, y, x] = mean_c |reconstruction[n, c, y, x] - image[n, c, y, x]|

    and 0 outside the valid part. This is SR-TOD's difference map (eq. 3). Padding is black in the
    image and anything in the reconstruction, so that without `valid` it would count as different.

    Args:
        reconstruction: [N, C, H, W], usually in 0..1; float32, float64, float16 or bfloat16.
        image: [N, C, H, W] in the same units.
        valid: [N, 2] int64 (height, width) of every image without its padding at the bottom and on
            the right, in pixels; values outside the image are cut to its size. None: no padding.

    Returns:
        [N, 1, H, W], contiguous. Computed in float32 (float64 for float64) and rounded once; under
        autocast in float32, because thresholds of a few 1/255 are lost in bfloat16. Differentiable
        once in both images, in reverse mode; the derivative of |x| at 0 is 0.

    Raises:
        RuntimeError: for a wrong rank, size, dtype or device.
    """
    return torch.ops.tinyops.difference_map(reconstruction, image, valid)


def difference_map_reference(
    reconstruction: Tensor, image: Tensor, valid: Tensor | None = None
) -> Tensor:
    """`difference_map` in plain torch: the definition that every kernel is tested against."""
    out = (reconstruction - image).abs().mean(1, keepdim=True)
    if valid is None:
        return out
    rows = torch.arange(out.shape[2], device=out.device)
    columns = torch.arange(out.shape[3], device=out.device)
    inside = (rows < valid[:, :1])[:, :, None] & (columns < valid[:, 1:])[:, None]
    return torch.where(inside[:, None], out, 0)


_OP = "difference_map"


def check_arguments(reconstruction: Tensor, image: Tensor, valid: Tensor | None = None) -> None:
    """The checks of csrc/ops/difference_map_check.h, for fake tensors and Triton."""
    check_map(_OP, "reconstruction", reconstruction)
    check_map_like(
        _OP, "image", image, "reconstruction", reconstruction, tuple(reconstruction.shape)
    )
    for size in reconstruction.shape[-2:]:
        check(size < 2**31, f"{_OP}: height and width must be below 2^31, got {size}")
    check_valid(_OP, valid, "reconstruction", reconstruction, reconstruction.shape[0])


def check_backward_arguments(
    grad: Tensor, reconstruction: Tensor, image: Tensor, valid: Tensor | None
) -> None:
    """`check_arguments` for the tensors of the backward operator."""
    check_arguments(reconstruction, image, valid)
    n, _, h, w = reconstruction.shape
    check_map_like(_OP, "grad", grad, "reconstruction", reconstruction, (n, 1, h, w))


def _fake(reconstruction: Tensor, image: Tensor, valid: Tensor | None = None) -> Tensor:
    check_arguments(reconstruction, image, valid)
    n, _, h, w = reconstruction.shape
    return reconstruction.new_empty(n, 1, h, w)


def _backward_fake(
    grad: Tensor, reconstruction: Tensor, image: Tensor, valid: Tensor | None
) -> Tensor:
    check_backward_arguments(grad, reconstruction, image, valid)
    return torch.empty_like(reconstruction, memory_format=layout_of(reconstruction))


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, gradients and autocast rules."""
    name = f"{namespace}::difference_map"
    backward_operator = operator(f"{namespace}::_difference_map_backward")

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_reconstruction = backward_operator(grad, *ctx.saved_tensors)
        d_image = -d_reconstruction if ctx.needs_input_grad[1] else None
        return (d_reconstruction if ctx.needs_input_grad[0] else None), d_image, None

    torch.library.register_fake(name, _fake)
    torch.library.register_fake(f"{namespace}::_difference_map_backward", _backward_fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    register_autocast(name, wide=("reconstruction", "image"))


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the Triton kernels the implementation of the operators of `namespace` for `key`."""
    from tinyops._triton import difference_map as kernels

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        check_arguments(*args, **kwargs)
        return kernels.difference_map(*args, **kwargs)

    def backward(*args: Any) -> Tensor:
        check_backward_arguments(*args)
        return kernels._difference_map_backward(*args)

    torch.library.impl(f"{namespace}::difference_map", key)(forward)
    torch.library.impl(f"{namespace}::_difference_map_backward", key)(backward)


register("tinyops")
