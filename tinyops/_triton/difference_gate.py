"""The difference gate of SR-TOD (eq. 4 and 6) in Triton, forward and backward.

A program owns a segment of one row of cells: it makes their masks from the map, once per tile of
channels. Wide tensors move once: forward features and out; backward grad, features and d_features.
The backward's program takes all channels. It leaves the sums over its cells, one per channel, and
the sums over channels, one per cell; a second kernel spreads the latter over the map. Everything is
added up in a fixed order: the same result every time.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

from typing import Any

import torch
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
    widen,
)

_NEAREST, _AREA, _MAX = 0, 1, 2  # the schema's codes of resize


@triton.jit
def _pixel(difference, n, y, x, h, w, rows, columns, r, k):
    """Pixel (r, k) of the blocks of rows x columns pixels of cells (y, x), and its place."""
    at = ((n * h + y) * rows + r) * (w * columns) + x * columns + k
    return load_wide(difference, at, x < w), at


@triton.jit
def _code(value, limit):
    """Twice the mask: 2 above the threshold, 0 below, 1 on a tie and where NaN leaves it open."""
    return 1 + (value > limit).to(tl.int32) - (value < limit).to(tl.int32)


@triton.jit
def _is_near(value, limit):
    distance = value - limit
    return (distance <= 1) & (distance >= -1)


@triton.jit
def _threshold(threshold):
    DOUBLE: tl.constexpr = threshold.dtype.element_ty == tl.float64
    return tl.load(threshold).to(tl.float64 if DOUBLE else tl.float32)


@triton.jit
def _factor(
    difference, threshold, n, y, x, h, w, rows, columns, RESIZE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """1 + mask of the cells."""
    limit = _threshold(threshold)
    value, _ = _pixel(difference, n, y, x, h, w, rows, columns, 0, 0)
    code = _code(value, limit)
    if RESIZE == 0:
        return 1 + code.to(T) * 0.5
    else:
        total = code.to(tl.int64) * 0
        r = 0
        while r < rows:
            k = 0
            while k < columns:
                value, _ = _pixel(difference, n, y, x, h, w, rows, columns, r, k)
                own = _code(value, limit).to(tl.int64)
                total = total + own if RESIZE == 1 else tl.maximum(total, own)
                k += 1
            r += 1
        if RESIZE == 1:
            return 1 + total.to(T) / (2 * rows.to(tl.int64) * columns).to(T)
        else:
            return 1 + total.to(T) * 0.5


@triton.jit(do_not_specialize=["h", "rows", "columns"])
def _forward_kernel(
    features, weight, difference, threshold, out, C, h, w, rows, columns, RESIZE: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    n, block, y, x = place(tl.cdiv(C, CHANNELS), h, w, COLUMNS, NHWC)
    x += tl.arange(0, COLUMNS)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    factor = _factor(difference, threshold, n, y, x, h, w, rows, columns, RESIZE, T)
    i, k = tile_of(x, c, NHWC)
    inside = (i < w) & (k < C)
    offset = offset_of(n, k, y, i, C, h, w, NHWC)
    own = widen(load_wide(weight, n * C + c, c < C), not NHWC)
    result = load_wide(features, offset, inside) * own * widen(factor, NHWC)
    tl.store(out + offset, result, inside)


@triton.jit(do_not_specialize=["h", "rows", "columns"])
def _backward_kernel(
    grad, features, weight, difference, threshold, d_features, parts, sums, C, h, w, rows, columns,
    RESIZE: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """d_features; parts [N, programs of an image, C], to be added up to d_channel_weight; sums
    [N, h, w] over channels of grad * features * weight. Any of them may be None."""
    T: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    n, _, y, start = place(1, h, w, COLUMNS, NHWC)
    x = start + tl.arange(0, COLUMNS)
    factor = widen(_factor(difference, threshold, n, y, x, h, w, rows, columns, RESIZE, T), NHWC)
    total = tl.zeros([COLUMNS, CHANNELS] if NHWC else [CHANNELS, COLUMNS], T)
    part = (n * h + y) * tl.cdiv(w, COLUMNS) + start // COLUMNS
    first = 0
    while first < C:
        c = first + tl.arange(0, CHANNELS)
        i, k = tile_of(x, c, NHWC)
        inside = (i < w) & (k < C)
        offset = offset_of(n, k, y, i, C, h, w, NHWC)
        g, f = load_wide(grad, offset, inside), load_wide(features, offset, inside)
        own = widen(load_wide(weight, n * C + c, c < C), not NHWC)
        scaled = g * factor
        total += g * (f * own)
        if d_features is not None:
            tl.store(d_features + offset, scaled * own, inside)
        if parts is not None:
            tl.store(parts + part * C + c, tl.sum(scaled * f, 0 if NHWC else 1), c < C)
        first += CHANNELS
    if sums is not None:
        tl.store(sums + (n * h + y) * w + x, tl.sum(total, 1 if NHWC else 0), x < w)


@triton.jit(do_not_specialize=["h", "rows", "columns"])
def _spread_kernel(
    sums, difference, threshold, d_difference, totals, h, w, rows, columns, RESIZE: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """d_difference or None, and [programs] shares of -d_threshold."""
    DOUBLE: tl.constexpr = difference.dtype.element_ty == tl.float64
    T: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    n, _, y, x = place(1, h, w, COLUMNS, NHWC)
    x += tl.arange(0, COLUMNS)
    limit = _threshold(threshold)
    value = 0.5 * load_wide(sums, (n * h + y) * w + x, x < w)
    total = value.to(tl.float64) * 0.0
    chosen = tl.zeros([COLUMNS], tl.int64)
    if RESIZE == 1:
        value /= (rows.to(tl.int64) * columns).to(value.dtype)
    if RESIZE == 2:  # the first pixel with the largest code
        most = tl.full([COLUMNS], -1, tl.int32)
        r = 0
        while r < rows:
            k = 0
            while k < columns:
                pixel, at = _pixel(difference, n, y, x, h, w, rows, columns, r, k)
                code = _code(pixel, limit)
                chosen = tl.where(code > most, at, chosen)
                most = tl.maximum(most, code)
                k += 1
            r += 1
    if RESIZE == 0:
        _, chosen = _pixel(difference, n, y, x, h, w, rows, columns, 0, 0)
    r = 0
    while r < rows:
        k = 0
        while k < columns:
            pixel, at = _pixel(difference, n, y, x, h, w, rows, columns, r, k)
            reads = _is_near(pixel, limit) & (x < w)
            if RESIZE != 1:
                reads = reads & (at == chosen)
            own = tl.where(reads, value, 0.0)
            total += own.to(tl.float64)
            if d_difference is not None:
                tl.store(d_difference + at, own.to(T), x < w)
            k += 1
        r += 1
    tl.store(totals + tl.program_id(0), tl.sum(total, 0))


def plan_forward(
    features: Tensor, channel_weight: Tensor, difference: Tensor, threshold: Tensor, resize: int,
    out: Tensor,
) -> list[Launch]:  # fmt: skip
    if out.numel() == 0:
        return []
    nhwc = is_nhwc(out)
    tile = tile_size(nhwc, 2048 if out.element_size() == 2 else 1024)  # two 16-byte loads a thread
    n, c, h, w = out.shape
    launch = plan(
        _forward_kernel, (n, c, h, w), tile, nhwc, dense(features, nhwc),
        dense(channel_weight, False), dense(difference, False), threshold, out, c, h, w,
        *_ratio(difference, h, w), RESIZE=resize,
    )  # fmt: skip
    return [launch]


def plan_backward(
    grad: Tensor, features: Tensor, channel_weight: Tensor, difference: Tensor, threshold: Tensor,
    resize: int, needs: tuple[bool, bool, bool, bool],
) -> tuple[list[Any], list[Launch]]:  # fmt: skip
    """d_features, parts, d_difference and totals, each None if not needed, and what fills them."""
    nhwc, (n, c, h, w) = is_nhwc(features), features.shape
    wide = torch.promote_types(grad.dtype, torch.float32)
    tile = (64, 16) if nhwc else (16, 64)
    segments = h * triton.cdiv(w, tile[1])
    d_features = empty(features, n, c, h, w, nhwc=nhwc) if needs[0] else None
    parts = features.new_empty(n, segments, c, dtype=wide) if needs[1] else None
    d_difference = empty(difference, *difference.shape) if needs[2] else None
    mask = needs[2] or needs[3]
    sums = features.new_empty(n, h, w, dtype=wide) if mask else None
    map_tile = (1, 64)
    programs = n * h * triton.cdiv(w, map_tile[1])
    totals = features.new_empty(programs, dtype=torch.float64) if mask else None
    difference, sizes = dense(difference, False), (h, w, *_ratio(difference, h, w))
    launches = [
        plan(
            _backward_kernel, (n, 1, h, w), tile, nhwc, dense(grad, nhwc), dense(features, nhwc),
            dense(channel_weight, False), difference, threshold, d_features, parts, sums, c,
            *sizes, RESIZE=resize,
        )
    ]  # fmt: skip
    if mask:
        tensors = sums, difference, threshold, d_difference, totals
        launches.append(
            plan(_spread_kernel, (n, 1, h, w), map_tile, False, *tensors, *sizes, RESIZE=resize)
        )
    return [d_features, parts, d_difference, totals], launches


def _ratio(difference: Tensor, h: int, w: int) -> tuple[int, int]:
    """Rows and columns of the pixels of one cell."""
    return difference.shape[2] // h, difference.shape[3] // w


def difference_gate(
    features: Tensor, channel_weight: Tensor, difference: Tensor, threshold: Tensor, *,
    resize: int = 0, ste: int = 0,
) -> Tensor:  # fmt: skip
    out = empty(features, *features.shape, nhwc=is_nhwc(features))
    run(out, plan_forward(features, channel_weight, difference, threshold, resize, out))
    return out


def _difference_gate_backward(
    grad: Tensor, features: Tensor, channel_weight: Tensor, difference: Tensor, threshold: Tensor,
    resize: int, *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = features, channel_weight, difference, threshold
    none = [x.new_empty(0) for x in tensors]
    if features.numel() == 0:
        results = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if needed else empty_one
            for x, empty_one, needed in zip(tensors, none, needs, strict=True)
        ]
        return results[0], results[1], results[2], results[3]
    (d_features, parts, d_difference, totals), launches = plan_backward(
        grad, *tensors, resize, (needs[0], needs[1], needs[2], needs[3])
    )
    run(grad, launches)
    return (
        none[0] if d_features is None else d_features,
        # torch adds up in a fixed order too.
        none[1] if parts is None else parts.sum(1).to(features.dtype).view(channel_weight.shape),
        none[2] if d_difference is None else d_difference,
        -totals.sum().to(threshold.dtype) if needs[3] else none[3],
    )
