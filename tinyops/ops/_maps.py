"""Argument checks that feature operators share: rank, type, device and size of a map."""

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
