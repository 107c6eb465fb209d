"""The difference map of SR-TOD (eq. 3) in Triton, forward and backward.

A program owns a segment of one row, all channels: both images move once. In NHWC the channels of a
pixel are neighbours, so that the second and third load of a line come from the cache.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

import triton
import triton.language as tl
from torch import Tensor

from tinyops._triton.tiles import Launch, dense, empty, is_nhwc, load_wide, offset_of, place, run

_COLUMNS = 512  # of a program: four a thread


@triton.jit
def _inside(valid, n, y, x, W):
    """Which pixels of the row are not padding."""
    if valid is None:
        return x < W
    else:
        return (x < W) & (y < tl.load(valid + 2 * n)) & (x < tl.load(valid + 2 * n + 1))


@triton.jit(do_not_specialize=["H"])
def _forward_kernel(
    reconstruction, image, valid, out, C, H, W, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, _, y, x = place(1, H, W, COLUMNS, False)
    x += tl.arange(0, COLUMNS)
    inside = _inside(valid, n, y, x, W)
    DOUBLE: tl.constexpr = out.dtype.element_ty == tl.float64
    total = tl.zeros([COLUMNS], tl.float64 if DOUBLE else tl.float32)
    c = 0
    while c < C:
        offset = offset_of(n, c, y, x, C, H, W, NHWC)
        a, b = load_wide(reconstruction, offset, inside), load_wide(image, offset, inside)
        total += tl.abs(a - b)
        c += 1
    tl.store(out + (n * H + y) * W + x, tl.where(inside, total / C, 0.0), x < W)


@triton.jit(do_not_specialize=["H"])
def _backward_kernel(
    grad, reconstruction, image, valid, out, C, H, W, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, _, y, x = place(1, H, W, COLUMNS, False)
    x += tl.arange(0, COLUMNS)
    inside = _inside(valid, n, y, x, W)
    share = load_wide(grad, (n * H + y) * W + x, inside) / C
    c = 0
    while c < C:
        offset = offset_of(n, c, y, x, C, H, W, NHWC)
        a, b = load_wide(reconstruction, offset, inside), load_wide(image, offset, inside)
        sign = tl.where(a > b, 1.0, tl.where(a < b, -1.0, 0.0))
        tl.store(out + offset, tl.where(inside, share * sign, 0.0), x < W)
        c += 1


def _plan(kernel, p: Tensor, *args) -> list[Launch]:
    """One program per row and run of columns of the images `p`."""
    n, c, h, w = p.shape
    programs = n * h * triton.cdiv(w, _COLUMNS)
    constexprs = {"COLUMNS": _COLUMNS, "NHWC": is_nhwc(p)}
    return [Launch(kernel, programs, (*args, c, h, w), constexprs)] if programs else []


def _dense_valid(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.contiguous()


def plan_forward(
    reconstruction: Tensor, image: Tensor, valid: Tensor | None, out: Tensor
) -> list[Launch]:
    nhwc = is_nhwc(reconstruction)
    images = dense(reconstruction, nhwc), dense(image, nhwc)
    return _plan(_forward_kernel, images[0], *images, _dense_valid(valid), out)


def plan_backward(
    grad: Tensor, reconstruction: Tensor, image: Tensor, valid: Tensor | None, out: Tensor
) -> list[Launch]:
    nhwc = is_nhwc(reconstruction)
    images = dense(reconstruction, nhwc), dense(image, nhwc)
    return _plan(_backward_kernel, images[0], grad.contiguous(), *images, _dense_valid(valid), out)


def difference_map(reconstruction: Tensor, image: Tensor, valid: Tensor | None = None) -> Tensor:
    n, _, h, w = reconstruction.shape
    out = empty(reconstruction, n, 1, h, w)
    run(out, plan_forward(reconstruction, image, valid, out))
    return out


def _difference_map_backward(
    grad: Tensor, reconstruction: Tensor, image: Tensor, valid: Tensor | None
) -> Tensor:
    out = empty(reconstruction, *reconstruction.shape, nhwc=is_nhwc(reconstruction))
    run(out, plan_backward(grad, reconstruction, image, valid, out))
    return out
