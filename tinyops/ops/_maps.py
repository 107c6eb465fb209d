"""Argument checks that feature operators share: rank, type, device and size of a map."""

import torch
from torch import Tensor

from tinyops.ops._glue import FLOAT_DTYPES, check, dtype_text, shape_text


def check_map(op: str, name: str, x: Tensor) -> None:
    """The map that the others are compared with. As csrc/ops/maps_check.h, for fake tensors."""
    _check_rank(op, name, x)
    check(
        x.dtype in FLOAT_DTYPES,
        f"{op}: {name} must be float32, float64, float16 or bfloat16, got {dtype_text(x.dtype)}",
    )


def check_map_like(
    op: str, name: str, x: Tensor, leader: str, like: Tensor, size: tuple[int, ...] | None = None
) -> None:
    """A map on the device and of the dtype of another one, and of a certain size."""
    _check_rank(op, name, x)
    check(
        x.device == like.device,
        f"{op}: {name} must be on {like.device} like {leader}, got {x.device}",
    )
    check(
        x.dtype == like.dtype,
        f"{op}: {name} must be {dtype_text(like.dtype)} like {leader}, got {dtype_text(x.dtype)}",
    )
    check(
        size is None or tuple(x.shape) == size,
        f"{op}: {name} must be {shape_text(size or ())}, got {shape_text(x.shape)}",
    )


def _check_rank(op: str, name: str, x: Tensor) -> None:
    check(
        x.dim() == 4,
        f"{op}: {name} must have 4 dimensions [N, C, H, W], got {shape_text(x.shape)}",
    )


def check_valid(op: str, valid: Tensor | None, leader: str, like: Tensor, images: int) -> None:
    """One (height, width) per image. As csrc/ops/valid_check.h: values are not looked at."""
    if valid is None:
        return
    check(
        tuple(valid.shape) == (images, 2),
        f"{op}: valid must be [{images}, 2], height and width of every image, got "
        f"{shape_text(valid.shape)}",
    )
    check(
        valid.device == like.device,
        f"{op}: valid must be on {like.device} like {leader}, got {valid.device}",
    )
    check(valid.dtype == torch.int64, f"{op}: valid must be int64, got {dtype_text(valid.dtype)}")


def check_plane(op: str, size: torch.Size) -> None:
    """What kernels on a GPU ask for besides: offsets inside a plane are 32-bit there."""
    height, width = size[2:]
    check(
        height * width <= 2**31 - 2**24,
        f"{op}: on a GPU a plane must have fewer than 2^31 cells, got {height}x{width}",
    )
