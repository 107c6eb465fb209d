"""What the Triton kernels of feature operators share: tiles of maps in both layouts, and launches.

A program owns a segment of one row for a tile of channels. Program ids and indices of images are 64
bits wide, so that tensors beyond 2^31 elements are legal. Loads are masked and widened.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def place(channel_blocks, rows, columns, COLUMNS: tl.constexpr, NHWC: tl.constexpr):
    """Image, channel block, row and first column of this program, counted in memory order."""
    i = tl.program_id(0)  # split in 32 bits (64-bit division is a subroutine), then widened
    column_blocks = tl.cdiv(columns, COLUMNS)
    block = i % channel_blocks
    if NHWC:
        i = i // channel_blocks
    column, i = i % column_blocks, i // column_blocks
    row, i = i % rows, i // rows
    if not NHWC:
        block, i = i % channel_blocks, i // channel_blocks
    return i.to(tl.int64), block.to(tl.int64), row.to(tl.int64), column.to(tl.int64) * COLUMNS


# A wide tile is [columns, channels] in NHWC, [channels, columns] in NCHW: the dense axis is last.
# Per-pixel values are vectors: as a tile of one channel, a thread would load them per channel.


@triton.jit
def widen(pixels, NHWC: tl.constexpr):
    return pixels[:, None] if NHWC else pixels[None, :]


@triton.jit
def tile_of(columns, channels, NHWC: tl.constexpr):
    """Two vectors of indices as the two axes of a wide tile."""
    return widen(columns, NHWC), widen(channels, not NHWC)


@triton.jit
def offset_of(n, c, y, x, C, H, W, NHWC: tl.constexpr):
    """64 bits wide because n is: tensors beyond 2^31 elements are legal, single sizes are not."""
    if NHWC:
        return ((n * H + y) * W + x) * C + c
    else:
        return ((n * C + c) * H + y) * W + x


@triton.jit
def load_wide(ptr, offset, mask):
    DOUBLE: tl.constexpr = ptr.dtype.element_ty == tl.float64
    return tl.load(ptr + offset, mask, other=0.0).to(tl.float64 if DOUBLE else tl.float32)


class Launch(NamedTuple):
    """One kernel launch. test_triton_offline.py compiles those that the planners below return."""

    kernel: triton.JITFunction
    programs: int  # all on grid axis x: y and z end at 65535
    args: tuple  # tensors, None where there is none, then sizes
    constexprs: dict


def plan(kernel, over, tile, nhwc: bool, *args, **constexprs) -> Launch:
    """Cover over = (N, C, rows, columns) with programs of tile = (channels, columns) of one row."""
    programs = over[0] * triton.cdiv(over[1], tile[0]) * over[2] * triton.cdiv(over[3], tile[1])
    constexprs |= {"CHANNELS": tile[0], "COLUMNS": tile[1], "NHWC": nhwc}
    return Launch(kernel, programs, args, constexprs)


def tile_size(nhwc: bool, elements: int) -> tuple[int, int]:
    """(channels, columns), with 64 along the dense axis."""
    return (64, elements // 64) if nhwc else (elements // 64, 64)


def is_nhwc(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Any, nhwc: bool) -> Any:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    return None if x is None else x.contiguous(memory_format=layout)


def empty(like: Tensor, *size: int, nhwc: bool = False) -> Tensor:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def run(on: Tensor, launches: list[Launch]) -> None:
    with torch.cuda.device_of(on):  # does nothing for the interpreter's CPU tensors
        for kernel, programs, args, constexprs in launches:
            kernel[(programs,)](*args, **constexprs)
