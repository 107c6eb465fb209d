"""Sums of the foreground-background-balanced L1 (EFPN, eq. 5 to 7) in Triton, forward and backward.

A mask of one byte per cell is painted first: 0 padding, 1 counts, 2 counts as positive. Boxes paint
the same value, so their order does not matter. Sums are those of tiles in float32, joined by one
program in float64, always in the same order: no atomics.
Loops are `while`: under numpy 2.4, Triton 3.6's interpreter wants Python numbers in `range`.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyops._triton.tiles import Launch, dense, empty, is_nhwc, load_wide, run, tile_of, widen


@triton.jit
def _extent(valid, n, H, W):
    rows, columns = H, W
    if valid is not None:
        rows = tl.minimum(tl.maximum(tl.load(valid + 2 * n), 0), H).to(tl.int32)
        columns = tl.minimum(tl.maximum(tl.load(valid + 2 * n + 1), 0), W).to(tl.int32)
    return rows, columns


@triton.jit
def _clear_kernel(valid, mask, H, W, CELLS: tl.constexpr):
    parts = tl.cdiv(H * W, CELLS)
    i = tl.program_id(0)
    n, cell = (i // parts).to(tl.int64), (i % parts) * CELLS + tl.arange(0, CELLS)
    rows, columns = _extent(valid, n, H, W)
    inside = (cell // W < rows) & (cell % W < columns)
    tl.store(mask + n * H * W + cell, inside.to(tl.uint8), cell < H * W)


@triton.jit
def _cut(x, most):
    """A float64 as an index in 0 .. most."""
    return tl.minimum(tl.maximum(x, 0.0), most.to(tl.float64)).to(tl.int32)


@triton.jit
def _paint_kernel(
    boxes, image_ids, scale, valid, mask, N, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program per box; coordinates in float64, as in the other kernels."""
    k = tl.program_id(0).to(tl.int64)
    n = tl.load(image_ids + k)
    if (n >= 0) & (n < N):
        x1, y1 = tl.load(boxes + 4 * k).to(tl.float64), tl.load(boxes + 4 * k + 1).to(tl.float64)
        x2, y2 = (
            tl.load(boxes + 4 * k + 2).to(tl.float64),
            tl.load(boxes + 4 * k + 3).to(tl.float64),
        )
        s = tl.load(scale)
        rows, columns = _extent(valid, n, H, W)
        rows, columns = rows + 0 * k, columns + 0 * k
        if (x1 <= x2) & (y1 <= y2):
            left, top = _cut(tl.floor(x1 * s), columns), _cut(tl.floor(y1 * s), rows)
            right, bottom = _cut(tl.ceil(x2 * s), columns), _cut(tl.ceil(y2 * s), rows)
            while top < bottom:
                y = top + tl.arange(0, ROWS)[:, None]
                start = left
                while start < right:
                    x = start + tl.arange(0, COLUMNS)[None, :]
                    two = tl.full([ROWS, COLUMNS], 2, tl.uint8)
                    tl.store(mask + n * H * W + y * W + x, two, (y < bottom) & (x < right))
                    start += COLUMNS
                top += ROWS


@triton.jit
def _tile(C, cells, blocks, CHANNELS: tl.constexpr, CELLS: tl.constexpr, NHWC: tl.constexpr):
    """Of this program: image, channel block, cells of the image, and the offsets of its tile."""
    i = tl.program_id(0)
    parts = tl.cdiv(cells, CELLS)
    block, i = i % blocks, i // blocks  # neighbours share the mask
    n, cell = (i // parts).to(tl.int64), (i % parts) * CELLS + tl.arange(0, CELLS)
    j, k = tile_of(cell, block * CHANNELS + tl.arange(0, CHANNELS), NHWC)
    offset = (n * cells + j) * C + k if NHWC else (n * C + k) * cells + j
    return n, block, cell, offset, (j < cells) & (k < C)


@triton.jit
def _sums_kernel(
    prediction, target, mask, sums, counts, C, cells, blocks,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, block, cell, offset, inside = _tile(C, cells, blocks, CHANNELS, CELLS, NHWC)
    m = tl.load(mask + n * cells + cell, cell < cells, other=0)
    d = tl.abs(load_wide(prediction, offset, inside) - load_wide(target, offset, inside))
    wide = widen(m, NHWC)
    total = tl.sum(tl.sum(tl.where(inside & (wide > 0), d, 0.0), 1), 0)
    positive = tl.sum(tl.sum(tl.where(inside & (wide > 1), d, 0.0), 1), 0)
    i = tl.program_id(0)
    tl.store(sums + 2 * i, total.to(tl.float64))
    tl.store(sums + 2 * i + 1, positive.to(tl.float64))
    tl.store(counts + i, tl.sum(((m > 1) & (block == 0)).to(tl.int32), 0))


@triton.jit
def _join_kernel(sums, counts, total, positive, cells, parts, PARTS: tl.constexpr):
    all_cells, under = tl.zeros([PARTS], tl.float64), tl.zeros([PARTS], tl.float64)
    count = tl.zeros([PARTS], tl.int64)
    start = 0
    while start < parts:
        i = start + tl.arange(0, PARTS)
        all_cells += tl.load(sums + 2 * i, i < parts, other=0.0)
        under += tl.load(sums + 2 * i + 1, i < parts, other=0.0)
        count += tl.load(counts + i, i < parts, other=0)
        start += PARTS
    tl.store(total, tl.sum(all_cells, 0).to(total.dtype.element_ty))
    tl.store(positive, tl.sum(under, 0).to(positive.dtype.element_ty))
    tl.store(cells, tl.sum(count, 0))


@triton.jit
def _backward_kernel(
    d_total, d_positive, prediction, target, mask, d_prediction, d_target, C, cells, blocks,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, _, cell, offset, inside = _tile(C, cells, blocks, CHANNELS, CELLS, NHWC)
    m = tl.load(mask + n * cells + cell, cell < cells, other=0)
    g = tl.load(d_total)
    weight = widen(tl.where(m > 1, g + tl.load(d_positive), tl.where(m > 0, g, 0.0)), NHWC)
    d = load_wide(prediction, offset, inside) - load_wide(target, offset, inside)
    slope = tl.where(d > 0, weight, tl.where(d < 0, -weight, 0.0))
    if d_prediction is not None:
        tl.store(d_prediction + offset, slope, inside)
    if d_target is not None:
        tl.store(d_target + offset, -slope, inside)


def plan_mask(
    prediction: Tensor, boxes: Tensor, image_ids: Tensor, valid: Tensor | None, scale: Tensor,
    mask: Tensor,
) -> list[Launch]:  # fmt: skip
    N, _, H, W = prediction.shape
    if N * H * W == 0:
        return []
    valid = None if valid is None else valid.contiguous()
    parts = triton.cdiv(H * W, 1024)
    clear = Launch(_clear_kernel, N * parts, (valid, mask, H, W), {"CELLS": 1024})
    tensors = boxes.contiguous(), image_ids.contiguous(), scale, valid, mask
    tile = {"ROWS": 4, "COLUMNS": 32}
    paint = Launch(_paint_kernel, len(boxes), (*tensors, N, H, W), tile)
    return [clear, paint] if len(boxes) else [clear]


def _tiles(x: Tensor, nhwc: bool) -> tuple[int, int, dict]:
    """Numbers of programs and of blocks of channels, and the tile: its mask is read once for many
    channels. There is a first block even without channels: it counts the positive cells."""
    N, C, H, W = x.shape
    channels, cells = (64, 32) if nhwc else (8, 256)
    blocks = max(1, triton.cdiv(C, channels))
    programs = N * blocks * triton.cdiv(H * W, cells)
    return programs, blocks, {"CHANNELS": channels, "CELLS": cells, "NHWC": nhwc}


def plan_sums(
    prediction: Tensor, target: Tensor, mask: Tensor, outputs: tuple[Tensor, Tensor, Tensor]
) -> list[Launch]:
    nhwc = is_nhwc(prediction)
    programs, blocks, tile = _tiles(prediction, nhwc)
    _, C, H, W = prediction.shape
    tensors = dense(prediction, nhwc), dense(target, nhwc), mask
    sums = torch.empty((programs, 2), dtype=torch.float64, device=mask.device)
    counts = torch.empty(programs, dtype=torch.int32, device=mask.device)
    join = Launch(_join_kernel, 1, (sums, counts, *outputs, programs), {"PARTS": 1024})
    if programs == 0:
        return [join]
    args = *tensors, sums, counts, C, H * W, blocks
    return [Launch(_sums_kernel, programs, args, tile), join]


def plan_backward(
    d_total: Tensor, d_positive: Tensor, prediction: Tensor, target: Tensor, mask: Tensor,
    d_prediction: Tensor | None, d_target: Tensor | None,
) -> list[Launch]:  # fmt: skip
    nhwc = is_nhwc(prediction)
    programs, blocks, tile = _tiles(prediction, nhwc)
    if prediction.numel() == 0 or (d_prediction is None and d_target is None):
        return []
    _, C, H, W = prediction.shape
    tensors = dense(prediction, nhwc), dense(target, nhwc), mask, d_prediction, d_target
    args = d_total, d_positive, *tensors, C, H * W, blocks
    return [Launch(_backward_kernel, programs, args, tile)]


def _paint(
    prediction: Tensor, boxes: Tensor, image_ids: Tensor, valid: Tensor | None, scale: float
) -> Tensor:
    N, _, H, W = prediction.shape
    mask = torch.empty((N, H, W), dtype=torch.uint8, device=prediction.device)
    # As a tensor: Triton makes float32 of a Python number.
    cells_per_pixel = torch.full((), scale, dtype=torch.float64, device=prediction.device)
    run(prediction, plan_mask(prediction, boxes, image_ids, valid, cells_per_pixel, mask))
    return mask


def balanced_l1_sums(
    prediction: Tensor, target: Tensor, boxes: Tensor, image_ids: Tensor, valid: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mask = _paint(prediction, boxes, image_ids, valid, scale)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    total, positive = (torch.empty((), dtype=dtype, device=mask.device) for _ in range(2))
    cells = torch.empty((), dtype=torch.int64, device=mask.device)
    run(prediction, plan_sums(prediction, target, mask, (total, positive, cells)))
    return total, positive, cells


def _balanced_l1_sums_backward(
    d_total: Tensor, d_positive: Tensor, prediction: Tensor, target: Tensor, boxes: Tensor,
    image_ids: Tensor, valid: Tensor | None, scale: float, need_prediction: bool, need_target: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    mask = _paint(prediction, boxes, image_ids, valid, scale)
    size, nhwc = prediction.shape, is_nhwc(prediction)
    wanted = [
        empty(prediction, *size, nhwc=nhwc) if need else None
        for need in (need_prediction, need_target)
    ]
    run(prediction, plan_backward(d_total, d_positive, prediction, target, mask, *wanted))
    d_prediction, d_target = (empty(prediction, 0) if d is None else d for d in wanted)
    return d_prediction, d_target
