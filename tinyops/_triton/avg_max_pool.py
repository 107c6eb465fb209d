"""Global average and maximum pooling (SR-TOD, eq. 5) in Triton, forward and backward.

A program of the forward reads a part of the cells of some channels once, for both; a second kernel
joins the parts in order. Where the maximum is goes with the sums, its value is read again. Tiles
are [channels, cells] in NCHW and [cells, channels] in NHWC. No atomics.
Loops are `while`: under numpy 2.4, Triton 3.6's interpreter wants Python numbers in `range`.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyops._triton.tiles import Launch, dense, empty, is_nhwc, load_wide, run, tile_of, widen

NOWHERE = tl.constexpr(2147483647)  # as the place of a maximum: later than every cell


@triton.jit
def _extent(valid, n, H, W):
    """Rows and columns of image n that count; n may be a vector."""
    rows, columns = H + 0 * n, W + 0 * n
    if valid is not None:
        rows = tl.minimum(tl.maximum(tl.load(valid + 2 * n), 0), H)
        columns = tl.minimum(tl.maximum(tl.load(valid + 2 * n + 1), 0), W)
    return rows, columns


@triton.jit
def _inside(valid, cell, n, H, W):
    inside = cell < H * W
    if valid is not None:
        rows, columns = _extent(valid, n, H, W)
        inside = (cell // W < rows) & (cell % W < columns)
    return inside


@triton.jit
def _is_better(value, best):
    """A larger number, or the first NaN. Not for the very first value."""
    return (value > best) | ((value != value) & (best == best))


@triton.jit
def _pool_kernel(
    features, valid, sums, places, C, H, W, parts, cells_per_part,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = tl.float64 if features.dtype.element_ty == tl.float64 else tl.float32
    i = tl.program_id(0)
    part, i = i % parts, i // parts
    blocks = tl.cdiv(C, CHANNELS)
    n, c = (i // blocks).to(tl.int64), (i % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    cell, k = tile_of(part * cells_per_part + tl.arange(0, CELLS), c, NHWC)
    last = tl.minimum((part + 1) * cells_per_part, H * W)
    total = tl.zeros([CELLS, CHANNELS] if NHWC else [CHANNELS, CELLS], T)
    best = total - float("inf")
    place = (total * 0).to(tl.int32) + NOWHERE
    turn = part * cells_per_part
    while turn < last:
        inside = _inside(valid, cell, n, H, W) & (cell < last) & (k < C)
        offset = (n * H * W + cell) * C + k if NHWC else (n * C + k) * H * W + cell
        value = load_wide(features, offset, inside)
        total += value
        take = inside & (_is_better(value, best) | (place == NOWHERE))
        best = tl.where(take, value, best)
        place = tl.where(take, cell, place)
        cell += CELLS
        turn += CELLS
    A: tl.constexpr = 0 if NHWC else 1
    is_nan = best != best
    nan_place = tl.min(tl.where(is_nan, place, NOWHERE), A)
    most = tl.max(tl.where(is_nan, -float("inf"), best), A)
    place = tl.min(tl.where(best == widen(most, not NHWC), place, NOWHERE), A)
    place = tl.where(nan_place < NOWHERE, nan_place, place)
    at = (n * C + c) * parts + part
    tl.store(sums + at, tl.sum(total, A), c < C)
    tl.store(places + at, place, c < C)


@triton.jit
def _join_kernel(
    features, valid, sums, places, mean, maximum, index, planes, C, H, W, parts,
    PLANES: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """The results of PLANES planes, counted as image * C + channel."""
    T: tl.constexpr = tl.float64 if features.dtype.element_ty == tl.float64 else tl.float32
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    inside = plane < planes
    plane = tl.where(inside, plane, 0)
    n, c = plane // C, plane % C
    total = tl.zeros([PLANES], tl.float64)
    best = tl.zeros([PLANES], T)
    found = tl.zeros([PLANES], tl.int32) - 1
    part = 0
    while part < parts:
        at = plane * parts + part
        total += tl.load(sums + at, inside, other=0.0).to(tl.float64)
        place = tl.load(places + at, inside, other=NOWHERE)
        is_place = place != NOWHERE
        offset = (n * H * W + place) * C + c if NHWC else plane * H * W + place
        value = load_wide(features, offset, inside & is_place)
        take = is_place & (_is_better(value, best) | (found < 0))
        best = tl.where(take, value, best)
        found = tl.where(take, place, found)
        part += 1
    rows, columns = _extent(valid, n, H, W)
    cells = tl.maximum(rows * columns, 1).to(tl.float64)
    tl.store(mean + plane, (total / cells).to(T), inside)
    tl.store(maximum + plane, best, inside)
    tl.store(index + plane, found.to(tl.int64), inside)


@triton.jit
def _backward_kernel(
    d_mean, d_max, index, valid, d_features, C, H, W,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    blocks, parts = tl.cdiv(C, CHANNELS), tl.cdiv(H * W, CELLS)
    if NHWC:
        block, i = i % blocks, i // blocks
        part, i = i % parts, i // parts
    else:
        part, i = i % parts, i // parts
        block, i = i % blocks, i // blocks
    n, c = i.to(tl.int64), block * CHANNELS + tl.arange(0, CHANNELS)
    rows, columns = _extent(valid, n, H, W)
    cells = tl.maximum(rows * columns, 1)
    plane = n * C + c
    share = load_wide(d_mean, plane, c < C)
    share = share / cells.to(share.dtype)
    peak = load_wide(d_max, plane, c < C)
    place = tl.load(index + plane, c < C, other=-1)
    cell, k = tile_of(part * CELLS + tl.arange(0, CELLS), c, NHWC)
    value = tl.where(_inside(valid, cell, n, H, W), widen(share, not NHWC), 0.0)
    value += tl.where(cell == widen(place, not NHWC), widen(peak, not NHWC), 0.0)
    offset = (n * H * W + cell) * C + k if NHWC else (n * C + k) * H * W + cell
    tl.store(d_features + offset, value, (cell < H * W) & (k < C))


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def plan_forward(
    features: Tensor, valid: Tensor | None, mean: Tensor, maximum: Tensor, index: Tensor
) -> list[Launch]:
    N, C, H, W = features.shape
    if N * C == 0:
        return []
    nhwc = is_nhwc(features)
    features, valid = dense(features, nhwc), None if valid is None else valid.contiguous()
    channels, cells = (64, 16) if nhwc else (1, 1024)
    # At most 256 parts, which the second kernel walks through one after another.
    per_part = _round_up(max(128 if nhwc else 8192, -(-H * W // 256)), cells)
    parts = -(-H * W // per_part)
    dtype = torch.promote_types(features.dtype, torch.float32)
    sums = torch.empty((N, C, parts), dtype=dtype, device=features.device)
    places = torch.empty((N, C, parts), dtype=torch.int32, device=features.device)
    pool = Launch(
        _pool_kernel,
        N * triton.cdiv(C, channels) * parts,
        (features, valid, sums, places, C, H, W, parts, per_part),
        {"CHANNELS": channels, "CELLS": cells, "NHWC": nhwc},
    )
    join = Launch(
        _join_kernel,
        triton.cdiv(N * C, 32),
        (features, valid, sums, places, mean, maximum, index, N * C, C, H, W, parts),
        {"PLANES": 32, "NHWC": nhwc},
    )
    return [pool, join]


def plan_backward(
    d_mean: Tensor, d_max: Tensor, index: Tensor, valid: Tensor | None, d_features: Tensor,
    channels_last: bool,
) -> list[Launch]:  # fmt: skip
    N, C, H, W = d_features.shape
    if N * C == 0:
        return []
    channels, cells = (64, 32) if channels_last else (1, 2048)
    tensors = (*(x.contiguous() for x in (d_mean, d_max, index)), valid)
    if valid is not None:
        tensors = (*tensors[:3], valid.contiguous())
    launch = Launch(
        _backward_kernel,
        N * triton.cdiv(C, channels) * triton.cdiv(H * W, cells),
        (*tensors, d_features, C, H, W),
        {"CHANNELS": channels, "CELLS": cells, "NHWC": channels_last},
    )
    return [launch]


def avg_max_pool(features: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    mean, maximum = (empty(features, *features.shape[:2], 1, 1) for _ in range(2))
    index = torch.empty_like(mean, dtype=torch.int64)
    run(features, plan_forward(features, valid, mean, maximum, index))
    return mean, maximum, index


def _avg_max_pool_backward(
    d_mean: Tensor, d_max: Tensor, index: Tensor, valid: Tensor | None, height: int, width: int,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    d_features = empty(d_mean, *d_mean.shape[:2], height, width, nhwc=channels_last)
    run(d_mean, plan_backward(d_mean, d_max, index, valid, d_features, channels_last))
    return d_features
