"""Pixel shuffle with a leaky ReLU and an addition or concatenation (EFPN, eq. 3-4) in Triton.

A program owns a segment of one row of content for a tile of shuffled channels, with all sub-pixels.
Every tensor moves once. In NCHW at 2 and 4 sub-pixels a row, these are interleaved in registers, so
that all accesses are dense runs; otherwise the strided side relies on the caches.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

import triton
import triton.language as tl
from torch import Tensor

from tinyops._triton.tiles import (
    Launch,
    dense,
    empty,
    is_nhwc,
    load_wide,
    offset_of,
    place,
    plan,
    run,
    tile_of,
    tile_size,
)


@triton.jit
def _source(n, c, k, y, x, C, h, w, UP: tl.constexpr, DCR: tl.constexpr, NHWC: tl.constexpr):
    """Where sub-pixel k of shuffled channel c lies in content."""
    channel = k * C + c if DCR else c * (UP * UP) + k
    return offset_of(n, channel, y, x, C * (UP * UP), h, w, NHWC)


@triton.jit
def _leaky(x, value, SLOPE: tl.constexpr):
    return tl.where(x > 0, value, value * SLOPE)


@triton.jit
def _join(ptr, n, c, i, y, x, inside, C, h, w, UP: tl.constexpr, DCR: tl.constexpr,
          NHWC: tl.constexpr):  # fmt: skip
    """A dense run of row i of the sub-pixels, [channels, columns * UP], from UP runs; NCHW."""
    a = load_wide(ptr, _source(n, c, i * UP, y, x, C, h, w, UP, DCR, NHWC), inside)
    b = load_wide(ptr, _source(n, c, i * UP + 1, y, x, C, h, w, UP, DCR, NHWC), inside)
    if UP == 4:
        d = load_wide(ptr, _source(n, c, i * UP + 2, y, x, C, h, w, UP, DCR, NHWC), inside)
        e = load_wide(ptr, _source(n, c, i * UP + 3, y, x, C, h, w, UP, DCR, NHWC), inside)
        a, b = tl.join(a, d), tl.join(b, e)
    both = tl.join(a, b)
    return tl.reshape(both, [both.shape[0], both.shape[1] * UP])


@triton.jit(do_not_specialize=["h"])
def _forward_kernel(
    content, residual, out, C, outer, h, w, UP: tl.constexpr, SLOPE: tl.constexpr,
    DCR: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, block, ys, first = place(tl.cdiv(C, CHANNELS), h, w, COLUMNS, NHWC)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    xs, k = tile_of(first + tl.arange(0, COLUMNS), c, NHWC)
    inside = (xs < w) & (k < C)
    for i in tl.static_range(UP):
        y = ys * UP + i
        if NHWC or UP == 3:
            for j in tl.static_range(UP):
                source = _source(n, k, i * UP + j, ys, xs, C, h, w, UP, DCR, NHWC)
                value = load_wide(content, source, inside)
                value = _leaky(value, value, SLOPE)
                if residual is not None:
                    at = offset_of(n, k, y, xs * UP + j, C, h * UP, w * UP, NHWC)
                    value += load_wide(residual, at, inside)
                at = offset_of(n, k, y, xs * UP + j, outer, h * UP, w * UP, NHWC)
                tl.store(out + at, value, inside)
        else:
            value = _join(content, n, k, i, ys, xs, inside, C, h, w, UP, DCR, NHWC)
            value = _leaky(value, value, SLOPE)
            x, _ = tile_of(first * UP + tl.arange(0, COLUMNS * UP), c, NHWC)
            wide = (x < w * UP) & (k < C)
            if residual is not None:
                value += load_wide(residual, offset_of(n, k, y, x, C, h * UP, w * UP, NHWC), wide)
            tl.store(out + offset_of(n, k, y, x, outer, h * UP, w * UP, NHWC), value, wide)


@triton.jit
def _put(to, value, content, at, inside, SLOPE: tl.constexpr):
    if content is not None:
        value = _leaky(load_wide(content, at, inside), value, SLOPE)
    tl.store(to + at, value, inside)


@triton.jit(do_not_specialize=["h"])
def _backward_kernel(
    grad, content, d_content, C, outer, h, w, UP: tl.constexpr, SLOPE: tl.constexpr,
    DCR: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, block, ys, first = place(tl.cdiv(C, CHANNELS), h, w, COLUMNS, NHWC)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    xs, k = tile_of(first + tl.arange(0, COLUMNS), c, NHWC)
    inside = (xs < w) & (k < C)
    for i in tl.static_range(UP):
        y = ys * UP + i
        at = _source(n, k, i * UP, ys, xs, C, h, w, UP, DCR, NHWC)
        step = _source(0, 0, 1, 0, 0, C, h, w, UP, DCR, NHWC)
        if NHWC or UP == 3:
            for j in tl.static_range(UP):
                source = offset_of(n, k, y, xs * UP + j, outer, h * UP, w * UP, NHWC)
                value = load_wide(grad, source, inside)
                _put(d_content, value, content, at + j * step, inside, SLOPE)
        else:
            x, _ = tile_of(first * UP + tl.arange(0, COLUMNS * UP), c, NHWC)
            wide = (x < w * UP) & (k < C)
            run = load_wide(grad, offset_of(n, k, y, x, outer, h * UP, w * UP, NHWC), wide)
            if UP == 2:
                a, b = tl.split(tl.reshape(run, [CHANNELS, COLUMNS, 2]))
                _put(d_content, a, content, at, inside, SLOPE)
                _put(d_content, b, content, at + step, inside, SLOPE)
            else:
                even, odd = tl.split(tl.reshape(run, [CHANNELS, COLUMNS, 2, 2]))
                a, d = tl.split(even)
                b, e = tl.split(odd)
                _put(d_content, a, content, at, inside, SLOPE)
                _put(d_content, b, content, at + step, inside, SLOPE)
                _put(d_content, d, content, at + 2 * step, inside, SLOPE)
                _put(d_content, e, content, at + 3 * step, inside, SLOPE)


def plan_forward(
    content: Tensor, residual: Tensor | None, out: Tensor, upscale: int, slope: float, order: int
) -> list[Launch]:
    """What fills the shuffled channels of `out`; they are all where there is a residual."""
    N, C, h, w = content.shape
    C //= upscale**2
    if N * C * h * w == 0:
        return []
    nhwc = is_nhwc(content)
    launch = plan(
        _forward_kernel, (N, C, h, w), tile_size(nhwc, 512), nhwc,
        dense(content, nhwc), dense(residual, nhwc), out, C, out.shape[1], h, w,
        UP=upscale, SLOPE=slope, DCR=order == 1,
    )  # fmt: skip
    return [launch]


def plan_backward(
    grad: Tensor, content: Tensor | None, C: int, upscale: int, slope: float, order: int
) -> tuple[Tensor, list[Launch]]:
    """The gradient of content, and the launch that fills it."""
    is_dense = grad.is_contiguous() or is_nhwc(grad)
    nhwc = is_nhwc(grad if is_dense or content is None else content)
    N, _, H, W = grad.shape
    h, w = H // upscale, W // upscale
    d_content = empty(grad, N, C * upscale**2, h, w, nhwc=nhwc)
    if d_content.numel() == 0:
        return d_content, []
    if not is_dense:
        grad = dense(grad.narrow(1, 0, C), nhwc)
    launch = plan(
        _backward_kernel, (N, C, h, w), tile_size(nhwc, 512), nhwc,
        grad, dense(content, nhwc), d_content, C, grad.shape[1], h, w,
        UP=upscale, SLOPE=slope, DCR=order == 1,
    )  # fmt: skip
    return d_content, [launch]


def pixel_shuffle_concat(
    content: Tensor, reference: Tensor, *, upscale: int = 2, negative_slope: float = 1.0,
    order: int = 0,
) -> Tensor:  # fmt: skip
    N, R, H, W = reference.shape
    C = content.shape[1] // upscale**2
    out = empty(content, N, C + R, H, W, nhwc=is_nhwc(content))
    run(content, plan_forward(content, None, out, upscale, negative_slope, order))
    out.narrow(1, C, R).copy_(reference)
    return out


def pixel_shuffle_add(
    content: Tensor, residual: Tensor, *, upscale: int = 2, negative_slope: float = 1.0,
    order: int = 0,
) -> Tensor:  # fmt: skip
    out = empty(content, *residual.shape, nhwc=is_nhwc(content))
    run(content, plan_forward(content, residual, out, upscale, negative_slope, order))
    return out


def _pixel_shuffle_backward(
    grad: Tensor, content: Tensor | None, channels: int, upscale: int, negative_slope: float,
    order: int,
) -> Tensor:  # fmt: skip
    d_content, launches = plan_backward(grad, content, channels, upscale, negative_slope, order)
    run(grad, launches)
    return d_content
