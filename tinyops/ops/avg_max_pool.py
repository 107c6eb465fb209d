"""Mean and maximum of every channel in one pass (SR-TOD, eq. 5), for channel attention."""

from typing import Any

import torch
from torch import Tensor

from tinyops.ops._glue import (
    check,
    dtype_text,
    layout_of,
    once_differentiable,
    operator,
    register_autocast,
)
from tinyops.ops._maps import check_map, check_map_like, check_plane, check_valid


def avg_max_pool(features: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Global average and global maximum of `features`, which are read once for both.

        mean[n, c] = mean over y, x of features[n, c, y, x]        max[n, c] = their maximum

    The two descriptors of channel attention (CBAM eq. 2; SR-TOD weighs the channels of its finest
    level by them). Released SR-TOD pools over the padding of a batch as well; with `valid` it does
    not count. A NaN in a plane gives NaN for both.

    Args:
        features: [N, C, H, W]; float32, float64, float16 or bfloat16.
        valid: [N, 2] int64, height and width of each image without padding, in cells of this map.
            Cut to 0..H and 0..W. An image with no cells gives 0 for both, and no gradient.

    Returns:
        mean and max, both [N, C, 1, 1] in the dtype of `features`. Sums are accumulated in float32
        (float64 for float64) and joined in float64. Differentiable once, in reverse mode: the
        gradient of max goes to the first maximum, or the first NaN, row by row.

    Raises:
        RuntimeError: for a wrong rank, size, dtype or device, or features without a pixel.
    """
    mean, maximum, _ = torch.ops.tinyops.avg_max_pool(features, valid)
    return mean, maximum


def avg_max_pool_reference(features: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`avg_max_pool` in plain torch: the definition that every kernel is tested against."""
    values, zero = features.flatten(2), features.new_zeros(())
    inside = valid_cells(features, valid).flatten(2)
    count = inside.sum(-1, keepdim=True)
    mean = torch.where(inside, values, zero).sum(-1, keepdim=True) / count.clamp(min=1)
    first = torch.where(inside, values, float("-inf")).argmax(-1, keepdim=True)
    maximum = torch.where(count > 0, values.gather(-1, first), zero)
    return mean[..., None], maximum[..., None]


def valid_cells(features: Tensor, valid: Tensor | None) -> Tensor:
    """[N, 1, H, W] bool: the cells that are not padding."""
    images, _, height, width = features.shape
    if valid is None:
        return torch.ones(images, 1, height, width, dtype=torch.bool, device=features.device)
    rows = torch.arange(height, device=features.device)
    columns = torch.arange(width, device=features.device)
    inside = (rows[:, None] < valid[:, 0, None, None]) & (columns < valid[:, 1, None, None])
    return inside[:, None]


_OP = "avg_max_pool"


def check_arguments(features: Tensor, valid: Tensor | None = None) -> None:
    """The checks of csrc/ops/avg_max_pool_check.h, for fake tensors and Triton."""
    check_map(_OP, "features", features)
    _check_size(*features.shape[2:])
    check_valid(_OP, valid, "features", features, features.shape[0])


def check_backward_arguments(
    d_mean: Tensor,
    d_max: Tensor,
    index: Tensor,
    valid: Tensor | None,
    height: int,
    width: int,
    channels_last: bool,
) -> None:
    """`check_arguments` for the tensors of the backward operator."""
    check_map(_OP, "d_mean", d_mean)
    _check_size(height, width)
    size = (*d_mean.shape[:2], 1, 1)
    check_map_like(_OP, "d_mean", d_mean, "d_mean", d_mean, size)
    check_map_like(_OP, "d_max", d_max, "d_mean", d_mean, size)
    check(index.dtype == torch.int64, f"{_OP}: index must be int64, got {dtype_text(index.dtype)}")
    check_map_like(_OP, "index", index, "index", index, size)
    check(
        index.device == d_mean.device,
        f"{_OP}: index must be on {d_mean.device} like d_mean, got {index.device}",
    )
    check_valid(_OP, valid, "d_mean", d_mean, d_mean.shape[0])


def _check_size(height: int, width: int) -> None:
    check(
        1 <= height < 2**31 and 1 <= width < 2**31,
        f"{_OP}: height and width must be at least 1 and below 2^31, got {height}x{width}",
    )


def _fake(features: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(features, valid)
    mean = features.new_empty((*features.shape[:2], 1, 1))
    return mean, torch.empty_like(mean), torch.empty_like(mean, dtype=torch.int64)


def _backward_fake(
    d_mean: Tensor,
    d_max: Tensor,
    index: Tensor,
    valid: Tensor | None,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    check_backward_arguments(d_mean, d_max, index, valid, height, width, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    size = (*d_mean.shape[:2], height, width)
    return torch.empty(size, dtype=d_mean.dtype, device=d_mean.device, memory_format=layout)


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, gradients and autocast rules."""
    name = f"{namespace}::avg_max_pool"
    backward_operator = operator(f"{namespace}::_avg_max_pool_backward")

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        features, valid = inputs
        ctx.size = features.shape[2:]
        ctx.channels_last = layout_of(features) == torch.channels_last
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2], valid)

    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor, d_max: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        index, valid = ctx.saved_tensors
        return backward_operator(d_mean, d_max, index, valid, *ctx.size, ctx.channels_last), None

    torch.library.register_fake(name, _fake)
    torch.library.register_fake(f"{namespace}::_avg_max_pool_backward", _backward_fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    register_autocast(name)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the Triton kernels the implementation of the operators of `namespace` for `key`."""
    from tinyops._triton import avg_max_pool as kernels

    def forward(features: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        check_arguments(features, valid)
        check_plane(_OP, features.shape)
        return kernels.avg_max_pool(features, valid)

    def backward(*args: Any) -> Tensor:
        check_backward_arguments(*args)
        return kernels._avg_max_pool_backward(*args)

    torch.library.impl(f"{namespace}::avg_max_pool", key)(forward)
    torch.library.impl(f"{namespace}::_avg_max_pool_backward", key)(backward)


register("tinyops")
